"""Observation queries: the last queries of each request in the target's dense pass, which blocks are scored with."""

import torch
import triton
from torch import Tensor

from vllm_std.selection import native
from vllm_std.selection.kernels import capture_queries
from vllm_std.selection.keys import by_kernel


class QueryWindow:
    """Observation queries of all layers.

    kept: [layers, max_num_reqs, window, query heads, head size] in the target's dtype, on its device; a persistent
    buffer, filled by one launch a layer, so that a CUDA graph of the target replays the copy.
    """

    def __init__(self, shape: tuple[int, int, int, int, int], dtype: torch.dtype, device: torch.device):
        self.kept = torch.zeros(shape, dtype=dtype, device=device)

    def capture(self, layer: int, query: Tensor, query_start_loc: Tensor) -> None:
        """Keep the last `window` queries of each request.

        query: [tokens, query heads, head size], with RoPE applied; query_start_loc: [reqs + 1] int32, as vLLM's
        attention metadata has it.
        """
        _, reqs, window, heads, size = self.kept.shape
        query = query.view(-1, heads, size)
        if not by_kernel(query):
            return native.capture_queries(self.kept[layer], query, query_start_loc)
        assert query.stride()[1:] == (size, 1)
        grid = (window, min(len(query_start_loc) - 1, reqs))
        constants = {"WINDOW": window, "ITEMS": heads * size, "PADDED": triton.next_power_of_2(heads * size)}
        capture_queries[grid](self.kept[layer], query, query_start_loc, query.stride(0), **constants)

    def last_verified(self, query_start_loc: Tensor, num_rejected: Tensor) -> Tensor:
        """[reqs], which kept query is that of the token verified last: those of rejected tokens come after it.

        num_rejected: [reqs] drafts that the pass has rejected.
        """
        query_lens = query_start_loc[1:] - query_start_loc[:-1]
        return (query_lens.clamp(max=self.kept.shape[2]) - num_rejected - 1).clamp(min=0)
