"""Where the keys of a paged KV cache lie, as kernels read them."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

TRITON_DTYPES = {
    torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16,
    torch.float8_e4m3fn: tl.float8e4nv, torch.float8_e5m2: tl.float8e5,
}  # fmt: skip


@dataclass(frozen=True)
class KeyCache:
    """The keys of all layers. A key channel is at address + block * strides[0] + head * strides[1] + its offset.

    addresses: [layers] uint64. key_scales: [layers] float32, what a quantised key is to be multiplied by.
    order: [block size, head size] int32 offset of a channel inside the block of a head; plain: token * strides[2] +
    channel says the same. dtype: of a cached key.
    """

    addresses: Tensor
    key_scales: Tensor
    order: Tensor
    plain: bool
    strides: tuple[int, int, int]
    kv_heads: int
    dtype: torch.dtype

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
    return tl.load(tl.cast(tl.load(addresses + layer), tl.pointer_type(KEY)) + begin + offset, mask=inside, other=0.0)
