"""Selection: which blocks are worth a draft's attention. One interface: `base.Policy`."""

from vllm_std.selection.base import Observation, Policy
from vllm_std.selection.policies import POLICIES
from vllm_std.selection.queries import QueryWindow

__all__ = ["POLICIES", "Observation", "Policy", "QueryWindow"]
