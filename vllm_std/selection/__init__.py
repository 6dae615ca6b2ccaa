"""Selection: which KV blocks a draft step attends to. `selector.Selector` shows the flow."""

from vllm_std.selection.batch import BatchBuffers, DensePass
from vllm_std.selection.policies import POLICIES, Policy
from vllm_std.selection.queries import QueryWindow
from vllm_std.selection.selector import Selector, selection_bytes
from vllm_std.selection.summaries import KeySummaries

__all__ = [
    "POLICIES",
    "BatchBuffers",
    "DensePass",
    "KeySummaries",
    "Policy",
    "QueryWindow",
    "Selector",
    "selection_bytes",
]
