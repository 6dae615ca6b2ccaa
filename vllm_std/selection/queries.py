"""Observation queries: the last queries of each request in the target's dense pass, kept for selection."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vllm_std.selection import native
from vllm_std.selection.keys import by_kernel


@triton.jit
def _keep(kept, query, query_start_loc, query_stride, WINDOW: tl.constexpr, ITEMS: tl.constexpr, PADDED: tl.constexpr):
    row, request = tl.program_id(0), tl.program_id(1)
    begin, end = tl.load(query_start_loc + request), tl.load(query_start_loc + request + 1)
    source = tl.maximum(end - WINDOW, begin) + row
    if source < end:
        item = tl.arange(0, PADDED)
        values = tl.load(query + source.to(tl.int64) * query_stride + item, mask=item < ITEMS)
        tl.store(kept + (request.to(tl.int64) * WINDOW + row) * ITEMS + item, values, mask=item < ITEMS)


class QueryWindow:
    """Keeps [layers, max_num_reqs, window, query heads, head size] in the target's dtype, on the target's device.

    One launch a layer over persistent buffers, so that a CUDA graph of the target replays the copy.
    """

    def __init__(self, shape: tuple[int, int, int, int, int], dtype: torch.dtype, device: torch.device):
        self.kept = torch.zeros(shape, dtype=dtype, device=device)

    def capture(self, layer: int, query: Tensor, query_start_loc: Tensor) -> None:
        """Keep the last `window` rows of each request; query: [tokens, query heads, head size]."""
        _, reqs, window, heads, size = self.kept.shape
        query = query.view(-1, heads, size)
        if not by_kernel(query):
            return native.keep_queries(self.kept[layer], query, query_start_loc)
        assert query.stride()[1:] == (size, 1)
        grid = (window, min(len(query_start_loc) - 1, reqs))
        padded = triton.next_power_of_2(heads * size)
        _keep[grid](self.kept[layer], query, query_start_loc, query.stride(0), window, heads * size, padded)

    def last_verified(self, query_start_loc: Tensor, num_rejected: Tensor) -> Tensor:
        """[reqs] row of the token verified last: those rejected come after it."""
        query_lens = query_start_loc[1:] - query_start_loc[:-1]
        return (query_lens.clamp(max=self.kept.shape[2]) - num_rejected - 1).clamp(min=0)
