"""Selection: which blocks are worth a draft's attention. One interface: `base.Policy`."""

from vllm_std.selection.base import Observation, Policy
from vllm_std.selection.policies import POLICIES
from vllm_std.selection.queries import QueryWindow
from vllm_std.selection.ranking import Ranking
from vllm_std.selection.selector import Selector
from vllm_std.selection.summaries import KeySummaries

__all__ = ["POLICIES", "KeySummaries", "Observation", "Policy", "QueryWindow", "Ranking", "Selector"]
