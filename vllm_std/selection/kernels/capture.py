"""What a dense pass leaves for selection: its last queries, and the mean keys of the blocks that it has completed."""

import triton
import triton.language as tl

from vllm_std.selection.kernels.loads import load_keys


@triton.jit
def capture_queries(
    kept, query, query_start_loc, query_stride, WINDOW: tl.constexpr, ITEMS: tl.constexpr, PADDED: tl.constexpr
):
    """One of the last WINDOW queries of a request in one layer. ITEMS: query heads times head size."""
    row, request = tl.program_id(0), tl.program_id(1)
    begin, end = tl.load(query_start_loc + request), tl.load(query_start_loc + request + 1)
    source = tl.maximum(end - WINDOW, begin) + row
    if source < end:
        item = tl.arange(0, PADDED)
        values = tl.load(query + source.to(tl.int64) * query_stride + item, mask=item < ITEMS)
        tl.store(kept + (request.to(tl.int64) * WINDOW + row) * ITEMS + item, values, mask=item < ITEMS)


@triton.jit(do_not_specialize=["num_items"])  # no compilation while requests wait
def summarise_blocks(
    addresses, key_scales, order, block_stride, head_stride, token_stride, means, layer_stride, items, num_items,
    context_lens, table, table_stride, GRANULE: tl.constexpr, KV_HEADS: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    SIZE: tl.constexpr, PADDED: tl.constexpr, PLAIN: tl.constexpr, KEY: tl.constexpr,
):  # fmt: skip
    """The mean keys of one complete block of a request, for one KV head of one layer.

    items: [2, num_items] int32, row of the batch, and place of the block counted back from the newest complete one.
    """
    item, head, layer = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row, back = tl.load(items + item), tl.load(items + num_items + item)
    block = tl.load(context_lens + row) // BLOCK_SIZE - 1 - back
    if block >= 0:
        physical = tl.load(table + row * table_stride + block).to(tl.int64)
        token, channel = tl.arange(0, GRANULE)[:, None], tl.arange(0, PADDED)[None, :]
        to = means + layer.to(tl.int64) * layer_stride
        to += (physical * KV_HEADS + head) * (BLOCK_SIZE // GRANULE * SIZE) + tl.arange(0, PADDED)
        for part in range(BLOCK_SIZE // GRANULE):
            keys = load_keys(
                addresses, order, block_stride, head_stride, token_stride, layer, physical, head,
                part * GRANULE + token, channel, (channel < SIZE) & (token >= 0), SIZE, PLAIN, KEY,
            )  # fmt: skip
            mean = tl.sum(keys.to(tl.float32), axis=0) * (tl.load(key_scales + layer) / GRANULE)
            tl.store(to + part * SIZE, mean.to(means.dtype.element_ty), mask=tl.arange(0, PADDED) < SIZE)
