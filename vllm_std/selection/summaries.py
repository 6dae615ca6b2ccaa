"""Key summaries: what is kept of the keys of each KV block, so that a round need not read them all again."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

GRANULE = 16  # tokens of one mean key: with keys and values cached in the model's dtype, 1/32 of the KV bytes
AT_ONCE = 512  # blocks read together, which bounds the memory that a long prompt takes


def granule(block_size: int) -> int:
    """Tokens of one mean key where a KV block holds `block_size` tokens."""
    return math.gcd(GRANULE, block_size)


def share_of_kv(itemsize: int, cached_itemsize: int, block_size: int) -> float:
    """Bytes of key summaries for a byte of KV cache; items: of the model's dtype, of a cached key or value."""
    return itemsize / (2 * cached_itemsize * granule(block_size))


class KeySummaries:
    """The mean key of every 16 tokens, by physical block, like the KV cache itself.

    means: [layers, blocks, KV heads, granules of a block, head size] in the model's dtype. Made from the cache whenever
    a request's prompt is complete and for each block it completes afterwards, so it does not matter how a block came to
    be filled (computed, found in the prefix cache, loaded by a connector) or whose it was before. What stands here for
    blocks that no running request owns is never read.
    """

    def __init__(self, shape: tuple[int, int, int, int, int], dtype: torch.dtype, device: torch.device):
        self.means = torch.zeros(shape, dtype=dtype, device=device)

    def update(self, keys: Callable[[int, Tensor], Tensor], blocks: Tensor) -> None:
        """Summarise physical blocks [n]; keys(layer, blocks) -> [n, KV heads, block size, head size]."""
        granules = self.means.shape[3]
        for layer, means in enumerate(self.means):
            for some in blocks.split(AT_ONCE):
                read = keys(layer, some).unflatten(2, (granules, -1))
                means[some] = read.float().mean(3).to(means.dtype)
