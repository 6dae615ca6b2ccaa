"""Selection: which blocks are worth a draft's attention. One interface: `base.Policy`."""

from vllm_std.selection.base import Observation, Policy, Round
from vllm_std.selection.policies import POLICIES
from vllm_std.selection.queries import QueryWindow
from vllm_std.selection.selector import Selector, selection_bytes
from vllm_std.selection.summaries import KeySummaries

__all__ = ["POLICIES", "KeySummaries", "Observation", "Policy", "QueryWindow", "Round", "Selector", "selection_bytes"]
