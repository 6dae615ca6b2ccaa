"""Where the keys of a layer are in its paged KV cache, whatever the backend's order inside a block."""

import torch
from torch import Tensor
from vllm.model_executor.layers.attention import Attention

from vllm_std.patches.wrapping import Patch
from vllm_std.selection.keys import KeyCache

KEY_LAYOUT = Patch(
    name="key layout",
    replaces=(
        "Attention.impl.do_kv_cache_update on the null block (a pattern is written and read back once); with an fp8 "
        "cache also Attention._k_scale_float, _q_scale_float and query_quant, which are read"
    ),
    why="the interior of a KV block is the backend's secret: the CPU kernels pack it by instruction set, fp8 is bytes",
    upstream="none",
    remove_when="backends describe the layout of a block",
)


class KeyFinder:
    """Finds the order of keys in a block.

    Every (token, channel) index is written as a key into the null block, which no request has, and read back.
    """

    BASE = 7  # digits 1..7: exact in every cache dtype, 8-bit floats included

    def __init__(self, layer: Attention):
        self.layer = layer
        self.cache = self.stored(layer)  # [blocks, KV heads, block size, 2 * head size]
        self.block_size = self.cache.shape[2]
        self.head_size = self.cache.shape[3] // 2

    @staticmethod
    def stored(layer: Attention) -> Tensor:
        """The cache in the dtype of what is in it: vLLM keeps 8-bit floats as bytes."""
        if layer.kv_cache.dtype != torch.uint8:
            return layer.kv_cache
        fp8_e5m2 = getattr(layer, "kv_cache_dtype", "auto") == "fp8_e5m2"
        return layer.kv_cache.view(torch.float8_e5m2 if fp8_e5m2 else torch.float8_e4m3fn)

    def places(self) -> Tensor:
        """[block size * head size] int64 place of each channel among what a head has in a block; -1: not found."""
        index = torch.arange(self.block_size * self.head_size, device=self.cache.device)
        order = torch.zeros(2 * len(index), dtype=torch.int64, device=self.cache.device)
        base = 1
        while base < len(index):
            order += (self._read_back(index // base % self.BASE + 1) - 1) * base
            base *= self.BASE
        places = torch.full_like(index, -1)
        places[order[order >= 0]] = (order >= 0).nonzero()[:, 0]
        return places

    def _read_back(self, values: Tensor) -> Tensor:
        """What the first head of the null block holds after `values` are written as keys, and zeros as values."""
        layer, cache = self.layer, self.layer.kv_cache
        keys = (values * layer._k_scale_float).to(layer.dtype).view(self.block_size, 1, self.head_size)
        keys = keys.repeat(1, cache.shape[1], 1)
        slots = torch.arange(self.block_size, dtype=torch.int64, device=cache.device)
        layer.impl.do_kv_cache_update(layer, keys, torch.zeros_like(keys), cache, slots)
        stored = self.cache[0, 0].reshape(-1).float().round().long()
        cache[0].zero_()
        return stored


def find_keys(layers: list[Attention]) -> KeyCache:
    """Where the keys of all layers are. Raises ValueError where they cannot be found, or lie differently by layer."""
    finder = KeyFinder(layers[0])
    caches = [finder.stored(layer) for layer in layers]
    places = finder.places()
    if (places < 0).any() or len({(cache.shape[1:], cache.stride(), cache.dtype) for cache in caches}) > 1:
        kind = type(layers[0].impl).__name__
        raise ValueError(f"selection cannot read keys back from the KV cache of {kind}, the same in all layers.")
    token_stride, channel_stride = finder.cache.stride()[-2:]
    row = 2 * finder.head_size
    order = (places // row * token_stride + places % row * channel_stride).view(finder.block_size, finder.head_size)
    index = torch.arange(len(places), device=places.device)
    in_order = bool((places == index + index // finder.head_size * finder.head_size).all())
    quantised = finder.cache.dtype.itemsize == 1
    scales = [layer._k_scale_float if quantised else 1.0 for layer in layers]
    return KeyCache(caches, order, channel_stride == 1 and in_order, scales)
