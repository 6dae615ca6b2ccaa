"""Observation queries: the last queries of each request in the target's dense pass, kept for selection."""

import torch
from torch import Tensor


class QueryWindow:
    """Keeps [layers, max_num_reqs, window, query heads, head size] in the target's dtype, on the target's device.

    Persistent buffers and device work only, so that a CUDA graph of the target replays the copy.
    """

    def __init__(self, shape: tuple[int, int, int, int, int], dtype: torch.dtype, device: torch.device):
        self.kept = torch.zeros(shape, dtype=dtype, device=device)
        self.row = torch.arange(shape[2], device=device)

    def see(self, layer: int, query: Tensor, query_start_loc: Tensor) -> None:
        """Keep the last `window` rows of each request; query: [tokens, query heads, head size]."""
        begin, end = query_start_loc[:-1, None], query_start_loc[1:, None]
        rows = torch.maximum(end - self.row.shape[0], begin) + self.row
        rows = torch.minimum(rows, end - 1).clamp(min=0)
        self.kept[layer, : rows.shape[0]] = query.view(-1, *self.kept.shape[3:])[rows]

    def count(self, query_start_loc: Tensor, num_rejected: Tensor) -> Tensor:
        """[reqs] rows kept of tokens that were verified: they come first."""
        query_lens = query_start_loc[1:] - query_start_loc[:-1]
        return query_lens.clamp(max=self.row.shape[0]) - num_rejected
