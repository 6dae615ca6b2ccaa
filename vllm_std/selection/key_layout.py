"""How the keys of a cache lie in a CPU's memory: as its attention kernels have them, and as `loops` reads them."""

import torch
from torch import Tensor

from vllm_std.selection.keys import KeyCache

TILE = 16  # tokens of a tile of keys as the CPU's AMX kernels have them


def raw(tensor: Tensor) -> tuple:
    """A tensor as numpy takes it, and float32 [numbers] of what whole numbers in it stand for.

    bfloat16 comes as int16, of which loops make values without such a table.
    """
    if tensor.dtype in (torch.float32, torch.bfloat16):
        bits = tensor if tensor.dtype == torch.float32 else tensor.view(torch.int16)
        return bits.numpy(), torch.zeros(1).numpy()
    whole = torch.uint8 if tensor.dtype.itemsize == 1 else torch.uint16
    every = torch.arange(1 << 8 * tensor.dtype.itemsize, dtype=torch.int32).to(whole)
    return tensor.view(whole).numpy(), every.view(tensor.dtype).float().numpy()


def key_layout(cache: KeyCache) -> tuple:
    """How the keys of a cache lie: the first arguments of all loops that read keys, found once.

    addresses: [layers] uint64; like: an empty array of the type that keys are read as; strides: of a block, of a KV
    head, and what a head's keys take up; key_table: as `raw` has it; key_scales: [layers]; lanes: tokens that lie side
    by side, 0 where they do not; order: as `KeyCache` has it.
    """
    if cache.layout is None:
        like, key_table = raw(cache.caches[0].as_strided((1,), (1,)))
        like, lanes = like[:0], 0
        strides = torch.tensor([*cache.strides[:2], int(cache.order.max()) + 1])
        if _in_pairs(cache):
            like, strides = like.view("int16").view("uint32"), strides // 2
        else:
            lanes = _lanes(cache.order)
        scales, order = cache.key_scales.numpy(), cache.order.numpy()
        cache.layout = cache.addresses.numpy(), like, strides.numpy(), key_table, scales, lanes, order
    return cache.layout


def _in_pairs(cache: KeyCache) -> bool:
    """Whether keys lie as [16 tokens][pair of channels][token][2], as the CPU's AMX kernels have them."""
    tokens, channels = cache.order.shape
    if cache.dtype != torch.bfloat16 or tokens % TILE or channels % 8:
        return False
    token, channel = torch.arange(tokens)[:, None], torch.arange(channels)
    pairs = token // TILE * TILE * channels + channel // 2 * 2 * TILE + token % TILE * 2 + channel % 2
    return torch.equal(cache.order.long(), pairs)


def _lanes(order: Tensor) -> int:
    """Tokens whose values of a channel lie side by side, as the CPU's vector kernels have them; 0 for another order."""
    tokens, channels = order.shape
    token, channel = torch.arange(tokens)[:, None], torch.arange(channels)
    for lanes in (32, 16):
        side_by_side = token // lanes * lanes * channels + channel * lanes + token % lanes
        if tokens % lanes == 0 and torch.equal(order.long(), side_by_side):
            return lanes
    return 0
