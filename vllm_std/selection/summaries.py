"""Key summaries: the mean keys of each KV block, so that a round need not read all keys again (compare Quest,
arXiv 2406.10774, which keeps bounds of a page's keys)."""

import numpy as np
import torch
from torch import Tensor

from vllm_std.patches.copies import async_tensor_h2d
from vllm_std.selection import native
from vllm_std.selection.kernels import summarise_blocks
from vllm_std.selection.keys import KeyCache, by_kernel


class KeySummaries:
    """The mean key of every `reads.GRANULE` tokens, by physical block, like the KV cache itself.

    means: [layers, blocks, KV heads, granules of a block, head size] in the model's dtype. Made from the cache whenever
    a request's prompt is complete and for each block it completes afterwards, so it does not matter how a block came to
    be filled (computed, found in the prefix cache, loaded by a connector) or whose it was before. What stands here for
    blocks that no running request owns is never read.
    """

    def __init__(self, shape: tuple[int, int, int, int, int], dtype: torch.dtype, device: torch.device):
        self.means = torch.zeros(shape, dtype=dtype, device=device)

    def update(self, cache: KeyCache, context_lens: Tensor, table: Tensor, newest: np.ndarray) -> None:
        """Summarise the newest complete blocks of the requests of a batch, in one launch.

        context_lens: [reqs] int32 verified tokens, 0 for a row to leave alone; table: [reqs, blocks] int32; newest:
        [rows] on the host, how many blocks of each of the first rows.
        """
        rows = np.repeat(np.arange(len(newest)), newest)
        backs = np.arange(len(rows)) - np.repeat(newest.cumsum() - newest, newest)
        items = async_tensor_h2d(np.stack([rows, backs]).astype(np.int32), self.means.device)
        if not by_kernel(self.means):
            return native.summarise_blocks(self.means, cache, context_lens, table, *items)
        layers, _, kv_heads, granules, _ = self.means.shape
        grid = (len(rows), kv_heads, layers)
        if all(grid):
            summarise_blocks[grid](
                *cache.arguments, self.means, self.means.stride(0), items, len(rows), context_lens, table,
                table.stride(0), GRANULE=cache.block_size // granules, **cache.constants,
            )  # fmt: skip
