"""Key summaries: what is kept of the keys of each KV block, so that a round need not read them all again."""

import math

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from vllm_std.patches.copies import async_tensor_h2d
from vllm_std.selection import native
from vllm_std.selection.keys import KeyCache, by_kernel, read_keys

GRANULE = 16  # tokens of one mean key: with keys and values cached in the model's dtype, 1/32 of the KV bytes


def granule(block_size: int) -> int:
    """Tokens of one mean key where a KV block holds `block_size` tokens."""
    return math.gcd(GRANULE, block_size)


def share_of_kv(itemsize: int, cached_itemsize: int, block_size: int) -> float:
    """Bytes of key summaries for a byte of KV cache; items: of the model's dtype, of a cached key or value."""
    return itemsize / (2 * cached_itemsize * granule(block_size))


@triton.jit(do_not_specialize=["many"])  # no compilation while requests wait
def _summarise(
    addresses, key_scales, order, block_stride, head_stride, token_stride, means, layer_stride, work, many, lengths,
    table, table_stride, GRANULE: tl.constexpr, KV_HEADS: tl.constexpr, BLOCK_SIZE: tl.constexpr, SIZE: tl.constexpr,
    PADDED: tl.constexpr, PLAIN: tl.constexpr, KEY: tl.constexpr,
):  # fmt: skip
    """One complete block of a request, counted back from its newest, for one KV head of one layer."""
    item, head, layer = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row, back = tl.load(work + item), tl.load(work + many + item)
    block = tl.load(lengths + row) // BLOCK_SIZE - 1 - back
    if block >= 0:
        physical = tl.load(table + row * table_stride + block).to(tl.int64)
        token, channel = tl.arange(0, GRANULE)[:, None], tl.arange(0, PADDED)[None, :]
        to = means + layer.to(tl.int64) * layer_stride
        to += (physical * KV_HEADS + head) * (BLOCK_SIZE // GRANULE * SIZE) + tl.arange(0, PADDED)
        for part in range(BLOCK_SIZE // GRANULE):
            keys = read_keys(
                addresses, order, block_stride, head_stride, token_stride, layer, physical, head,
                part * GRANULE + token, channel, (channel < SIZE) & (token >= 0), SIZE, PLAIN, KEY,
            )  # fmt: skip
            mean = tl.sum(keys.to(tl.float32), axis=0) * (tl.load(key_scales + layer) / GRANULE)
            tl.store(to + part * SIZE, mean.to(means.dtype.element_ty), mask=tl.arange(0, PADDED) < SIZE)


class KeySummaries:
    """The mean key of every 16 tokens, by physical block, like the KV cache itself.

    means: [layers, blocks, KV heads, granules of a block, head size] in the model's dtype. Made from the cache whenever
    a request's prompt is complete and for each block it completes afterwards, so it does not matter how a block came to
    be filled (computed, found in the prefix cache, loaded by a connector) or whose it was before. What stands here for
    blocks that no running request owns is never read.
    """

    def __init__(self, shape: tuple[int, int, int, int, int], dtype: torch.dtype, device: torch.device):
        self.means = torch.zeros(shape, dtype=dtype, device=device)

    def update(self, cache: KeyCache, length: Tensor, table: Tensor, newest: np.ndarray) -> None:
        """Summarise the newest complete blocks of the requests of a batch, in one launch.

        length: [reqs] int32 verified tokens, 0 for a row to leave alone; table: [reqs, blocks] int32; newest: [rows] on
        the host, how many blocks of each of the first rows.
        """
        rows = np.repeat(np.arange(len(newest)), newest)
        backs = np.arange(len(rows)) - np.repeat(newest.cumsum() - newest, newest)
        work = async_tensor_h2d(np.stack([rows, backs]).astype(np.int32), self.means.device)
        if not by_kernel(self.means):
            return native.summarise(self.means, cache, length, table, *work)
        layers, _, kv_heads, granules, _ = self.means.shape
        grid = (len(rows), kv_heads, layers)
        if all(grid):
            _summarise[grid](
                *cache.arguments, self.means, self.means.stride(0), work, len(rows), length, table, table.stride(0),
                cache.block_size // granules, **cache.constants,
            )  # fmt: skip
