"""Where the keys of a paged KV cache lie, as kernels read them."""

from typing import Any, Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

TRITON_DTYPES = {
    torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16,
    torch.float8_e4m3fn: tl.float8e4nv, torch.float8_e5m2: tl.float8e5,
}  # fmt: skip


# On a CPU the loops of `native` do what the kernels do; tests have `plain` do it in torch, or the kernels interpreted,
# or compiled without being run.
ON_CPU: Literal["native", "torch", "interpret", "compile"] = "native"


def by_kernel(tensor: Tensor) -> bool:
    return tensor.is_cuda or ON_CPU in ("interpret", "compile")


def interpreted(tensor: Tensor) -> bool:
    """Triton's interpreter is slow by the operation, a GPU by the element: so tiles differ."""
    return tensor.is_cpu and ON_CPU != "compile"


class KeyCache:
    """The keys of all layers. A channel of a key is at block * strides[0] + head * strides[1] + its offset.

    caches: [layers] of [blocks, KV heads, ...] of equal strides and dtype. order: [block size, head size] offset of a
    channel inside the block of a head; plain: token * strides[2] + channel says the same. scales: [layers], what a
    quantised key is to be multiplied by. layout: the same as `native` reads it, once that has looked.
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
    def constants(self) -> dict:
        block_size, size = self.order.shape
        return {
            "KV_HEADS": self.kv_heads, "BLOCK_SIZE": block_size, "SIZE": size,
            "PADDED": max(16, triton.next_power_of_2(size)), "PLAIN": self.plain, "KEY": TRITON_DTYPES[self.dtype],
        }  # fmt: skip


@triton.jit
def read_keys(
    addresses, order, block_stride, head_stride, token_stride, layer, block, head, token, channel, inside,
    SIZE: tl.constexpr, PLAIN: tl.constexpr, KEY: tl.constexpr,
):  # fmt: skip
    """[tokens, channels] keys of one KV head. block, token: [tokens, 1] physical block and place in it."""
    offset = token * token_stride + channel
    if not PLAIN:
        offset = tl.load(order + token * SIZE + channel, mask=inside, other=0)
    begin = block.to(tl.int64) * block_stride + head * head_stride
    cache = tl.multiple_of(tl.cast(tl.load(addresses + layer), tl.pointer_type(KEY)), 16)  # else loads are not vectors
    return tl.load(cache + begin + offset, mask=inside, other=0.0)
