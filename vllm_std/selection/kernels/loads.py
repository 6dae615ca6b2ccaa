"""What several kernels load or count in the same way."""

import triton
import triton.language as tl


@triton.jit
def load_keys(
    addresses, order, block_stride, head_stride, token_stride, layer, block, head, token, channel, inside,
    SIZE: tl.constexpr, PLAIN: tl.constexpr, KEY: tl.constexpr,
):  # fmt: skip
    """[tokens, channels] keys of one KV head. block, token: [tokens, 1] physical block and place in it.

    The rest is explained at `keys.KeyCache`.
    """
    offset = token * token_stride + channel
    if not PLAIN:
        offset = tl.load(order + token * SIZE + channel, mask=inside, other=0)
    begin = block.to(tl.int64) * block_stride + head * head_stride
    cache = tl.multiple_of(tl.cast(tl.load(addresses + layer), tl.pointer_type(KEY)), 16)  # else loads are not vectors
    return tl.load(cache + begin + offset, mask=inside, other=0.0)


@triton.jit
def load_query(
    queries, last_query, layer, row, max_rows, head, channel, WINDOW: tl.constexpr, HEADS: tl.constexpr,
    GROUP: tl.constexpr, SIZE: tl.constexpr, PADDED_GROUP: tl.constexpr,
):  # fmt: skip
    """[channels, group] query of the token verified last, of the query heads of one KV head. channel: [channels, 1]."""
    member = tl.arange(0, PADDED_GROUP)[None, :]
    window_row = (layer.to(tl.int64) * max_rows + row) * WINDOW + tl.load(last_query + row)
    place = window_row * HEADS + head * GROUP + member
    return tl.load(queries + place * SIZE + channel, mask=(member < GROUP) & (channel < SIZE), other=0.0)


@triton.jit
def blocks_read(written, MOST_READ: tl.constexpr, ALWAYS: tl.constexpr, SPARED: tl.constexpr):
    """`reads.KeyReads.blocks`."""
    return tl.minimum(tl.minimum(tl.maximum(written - SPARED, 0) + ALWAYS, MOST_READ), written)


@triton.jit
def blocks_estimated(
    length, MOST_READ: tl.constexpr, ALWAYS: tl.constexpr, SPARED: tl.constexpr, BLOCK_SIZE: tl.constexpr
):
    """Blocks that are scored by their mean keys: the complete ones; none where the keys of all blocks are read."""
    written = (length + BLOCK_SIZE - 1) // BLOCK_SIZE
    return tl.where(written > blocks_read(written, MOST_READ, ALWAYS, SPARED), length // BLOCK_SIZE, 0)
