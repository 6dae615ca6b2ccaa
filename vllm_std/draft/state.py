"""What std keeps in vLLM's speculator: one object, `speculator.std`."""

from typing import Any

import torch
from torch import Tensor

from vllm_std.config import StdConfig
from vllm_std.draft.buffers import DraftBuffers
from vllm_std.draft.target import Target
from vllm_std.faults import Faults
from vllm_std.patches.key_layout import find_keys
from vllm_std.patches.spec_decode import SpeculatorCudaGraphManager
from vllm_std.patches.truncation import Truncation
from vllm_std.proposals.passes import DraftPasses
from vllm_std.selection.attention import peak_bytes
from vllm_std.selection.policies import POLICIES
from vllm_std.selection.queries import QueryWindow
from vllm_std.selection.reads import GRANULE
from vllm_std.selection.selector import Selector


class DraftState:
    """gamma: the longest draft length, tokens. drafting: whether a draft step is running. truncation: None where drafts
    are greedy. passes: None without proposals; planned_steps: of the round to come, as the scheduler chose.

    target, queries: set by `load_model`. selector, group: by `set_attn`; group: the attention group of the full
    layers. select_graphs: by `init_cudagraph_manager`.
    """

    target: Target
    queries: QueryWindow
    selector: Selector
    group: Any
    select_graphs: SpeculatorCudaGraphManager

    def __init__(self, options: StdConfig, buffers: DraftBuffers):
        self.options = options
        self.policy = POLICIES[options.selection]
        self.gamma = options.num_speculative_tokens
        self.buffers = buffers
        self.faults = Faults()
        self.drafting = False
        self.truncation: Truncation | None = None
        self.passes: DraftPasses | None = None
        self.planned_steps: int | None = None
        self.query_error: Exception | None = None

    def num_steps(self, length: int) -> int:
        """Draft steps of a round of so many drafts: as many as the scheduler planned, else one for each draft."""
        if self.passes is None or self.planned_steps is None:
            return length
        return min(self.planned_steps, length)

    def capture_queries(self, max_num_reqs: int, dtype: torch.dtype, device: torch.device) -> None:
        """Allocate observation queries, before vLLM profiles its memory, and have each layer fill its part of them."""
        layer = self.target.layers[0]
        rows = max_num_reqs if self.policy.needs_queries else 0
        shape = (len(self.target.layers), rows, self.gamma + 1, layer.num_heads, layer.head_size)
        self.queries = QueryWindow(shape, dtype, device)
        if rows:
            self.target.observe_queries(self._capture)

    def _capture(self, layer: int, query: Tensor, query_start_loc: Tensor) -> None:
        if self.drafting:
            return
        try:
            self.queries.capture(layer, query, query_start_loc)
        except Exception as error:  # raised in the round instead, because the dense pass must not fail
            self.query_error = error

    def raise_query_error(self) -> None:
        """Raise what `_capture` has caught in the dense pass before this round."""
        if self.query_error is not None:
            error = self.query_error
            self.query_error = None
            raise error

    def find_keys(self) -> None:
        """Find the keys in the KV cache, which vLLM allocates after `set_attn`."""
        if self.selector.cache is None:
            self.selector.cache = find_keys(self.target.layers)
            self.selector.warm_up()

    def reserve_scores(self, max_model_len: int, max_num_reqs: int) -> None:
        """Let vLLM's memory profile see what a policy takes that reads all keys."""
        if self.policy.needs_queries and not self.policy.needs_summaries:
            layer = self.target.layers[0]
            heads = (layer.num_heads, layer.num_kv_heads, layer.head_size)
            most = peak_bytes(max_model_len, max_num_reqs, GRANULE, self.gamma + 1, *heads)
            torch.empty(most, dtype=torch.uint8, device=self.queries.kept.device)
