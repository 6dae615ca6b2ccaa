"""Where the keys of a paged KV cache lie, and what runs selection on them: kernels, or on a CPU what stands in."""

from typing import Any, Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

TRITON_DTYPES = {
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float8_e4m3fn: tl.float8e4nv,
    torch.float8_e5m2: tl.float8e5,
}


# What runs on a CPU: the loops of `native`. Tests also run the torch of `definition`, or the kernels, interpreted or
# compiled alone.
ON_CPU: Literal["native", "torch", "interpret", "compile"] = "native"


def by_kernel(tensor: Tensor) -> bool:
    """Whether Triton kernels work on a tensor."""
    return tensor.is_cuda or ON_CPU in ("interpret", "compile")


def interpreted(tensor: Tensor) -> bool:
    """Whether those kernels are interpreted: that is slow by the operation, a GPU by the element, so tiles differ."""
    return tensor.is_cpu and ON_CPU != "compile"


class KeyCache:
    """The keys of all layers. A channel of a key is at block * strides[0] + head * strides[1] + its offset.

    caches: [layers] of [blocks, KV heads, ...] of equal strides and dtype. order: [block size, head size] offset of a
    channel inside the block of a head; plain: token * strides[2] + channel says the same. scales: [layers], what a
    quantised key is to be multiplied by. layout: the same as `native` reads it, once it has looked.
    """

    layout: Any = None

    def __init__(self, caches: list[Tensor], order: Tensor, plain: bool, scales: list[float]):
        cache, self.block_size = caches[0], len(order)
        self.caches, self.order, self.plain = caches, order.to(cache.device, torch.int32), plain
        self.kv_heads, self.strides, self.dtype = cache.shape[1], cache.stride()[:3], cache.dtype
        addresses = [cache.data_ptr() for cache in caches]
        self.addresses = torch.tensor(addresses, dtype=torch.uint64, device=cache.device)
        self.key_scales = torch.tensor(scales, dtype=torch.float32, device=cache.device)

    def read(self, layer: int, blocks: Tensor) -> Tensor:
        """[n, KV heads, block size, head size] keys of physical blocks [n]; float32 where they are quantised."""
        cache = self.caches[layer]
        span = (cache.shape[0], self.kv_heads, int(self.order[-1, -1]) + 1 if self.plain else cache[0, 0].numel())
        flat = cache.as_strided(span, (*self.strides[:2], 1))
        keys = flat[blocks.long()][..., self.order.flatten().long()].unflatten(2, self.order.shape)
        return keys.float() * self.key_scales[layer] if cache.dtype.itemsize == 1 else keys

    @property
    def arguments(self) -> tuple:
        """The first arguments of every kernel that reads keys."""
        return self.addresses, self.key_scales, self.order, *self.strides

    @property
    def sizes(self) -> dict[str, int]:
        """Constants of every kernel that reads keys or mean keys. PADDED: of SIZE, the head size, to a power of two."""
        block_size, size = self.order.shape
        padded = max(16, triton.next_power_of_2(size))
        return {"KV_HEADS": self.kv_heads, "BLOCK_SIZE": block_size, "SIZE": size, "PADDED": padded}

    @property
    def constants(self) -> dict[str, Any]:
        """Constants of every kernel that reads keys."""
        return self.sizes | {"PLAIN": self.plain, "KEY": TRITON_DTYPES[self.dtype]}
