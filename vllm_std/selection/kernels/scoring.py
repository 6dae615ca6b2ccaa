"""Log-sum-exps of blocks, estimated from mean keys and exact from all keys; `softmax` explains what they leave."""

import triton
import triton.language as tl

from vllm_std.selection.kernels.loads import blocks_estimated, blocks_read, load_keys, load_query
from vllm_std.selection.kernels.softmax import LOWEST, add_exp, as_stored, store_part


@triton.jit
def _estimate(
    means, query, scale, inside, channel, GRANULES: tl.constexpr, LOG_GRANULE: tl.constexpr, TILE: tl.constexpr,
    PADDED_GROUP: tl.constexpr, DOT: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """[TILE, PADDED_GROUP] log-sum-exps of blocks, as if each key were the mean of its granule."""
    if GRANULES == 1:
        mean = tl.load(means + channel[None, :], mask=inside, other=0.0)
        log_sum = tl.dot(mean.to(DOT), query.to(DOT), input_precision="ieee") * scale
    else:
        top = tl.full([TILE, PADDED_GROUP], LOWEST, tl.float32)
        total = tl.zeros([TILE, PADDED_GROUP], tl.float32)
        for granule in range(GRANULES):
            mean = tl.load(means + granule * SIZE + channel[None, :], mask=inside, other=0.0)
            logits = tl.dot(mean.to(DOT), query.to(DOT), input_precision="ieee") * scale
            top, total = add_exp(top, total, logits, 1.0)
        log_sum = top + tl.log(total)
    return log_sum + LOG_GRANULE


@triton.jit(do_not_specialize=["first", "num_rows"])
def score_summaries(
    log_sums, part_max, part_sum, means, scored_lens, last_query, queries, scales, table, layer_stride, first,
    num_rows, max_rows, width, table_stride, MOST_READ: tl.constexpr, ALWAYS: tl.constexpr, SPARED: tl.constexpr,
    PARTS: tl.constexpr, WINDOW: tl.constexpr, HEADS: tl.constexpr, GROUP: tl.constexpr, PADDED_GROUP: tl.constexpr,
    GRANULE: tl.constexpr, LOG_GRANULE: tl.constexpr, TILE: tl.constexpr, DOT: tl.constexpr, KV_HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, SIZE: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Log-sum-exps of a part of the complete blocks of a pair, for one KV head, from its mean keys."""
    head, part, pair = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    layer, row = (first + pair) // num_rows, (first + pair) % num_rows
    complete = blocks_estimated(tl.load(scored_lens + row), MOST_READ, ALWAYS, SPARED, BLOCK_SIZE)
    channel, member = tl.arange(0, PADDED), tl.arange(0, PADDED_GROUP)
    query = load_query(
        queries, last_query, layer, row, max_rows, head, channel[:, None], WINDOW, HEADS, GROUP, SIZE, PADDED_GROUP
    )
    scale, granules = tl.load(scales + layer), BLOCK_SIZE // GRANULE
    to = log_sums + (pair.to(tl.int64) * KV_HEADS + head) * width * GROUP + member[None, :]
    all_top = tl.full([TILE, PADDED_GROUP], LOWEST, tl.float32)
    all_total = tl.zeros([TILE, PADDED_GROUP], tl.float32)
    for start in range(part * TILE, complete, tl.num_programs(1) * TILE):
        block = start + tl.arange(0, TILE)
        physical = tl.load(table + row * table_stride + block, mask=block < complete, other=0).to(tl.int64)
        inside = (block[:, None] < complete) & (channel[None, :] < SIZE)
        begin = means + layer.to(tl.int64) * layer_stride + (physical * KV_HEADS + head)[:, None] * (granules * SIZE)
        log_sum = _estimate(begin, query, scale, inside, channel, granules, LOG_GRANULE, TILE, PADDED_GROUP, DOT, SIZE)
        log_sum = as_stored(log_sum, log_sums)
        term = tl.where(block[:, None] < complete, log_sum, LOWEST)
        all_top, all_total = add_exp(all_top, all_total, term, 1.0)
        tl.store(to + block[:, None] * GROUP, log_sum, mask=(block[:, None] < complete) & (member[None, :] < GROUP))
    place = (pair * 2 * PARTS + part) * HEADS + head * GROUP + member
    store_part(part_max, part_sum, place, all_top, all_total, member < GROUP)


@triton.jit(do_not_specialize=["first", "num_rows"])
def score_keys(
    addresses, key_scales, order, block_stride, head_stride, token_stride, log_sums, part_max, part_sum, read_blocks,
    scored_lens, last_query, queries, scales, table, first, num_rows, max_rows, width, table_stride,
    MOST_READ: tl.constexpr, ALWAYS: tl.constexpr, SPARED: tl.constexpr, PARTS: tl.constexpr, TILE: tl.constexpr,
    WINDOW: tl.constexpr, HEADS: tl.constexpr, GROUP: tl.constexpr, PADDED_GROUP: tl.constexpr,
    PADDED_BLOCK: tl.constexpr, DOT: tl.constexpr, KV_HEADS: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    SIZE: tl.constexpr, PADDED: tl.constexpr, PLAIN: tl.constexpr, KEY: tl.constexpr,
):  # fmt: skip
    """Exact log-sum-exps of a part of `read_blocks`, [pairs, MOST_READ], in place of those of `score_summaries`."""
    head, part, pair = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    layer, row = (first + pair) // num_rows, (first + pair) % num_rows
    length = tl.load(scored_lens + row)
    count = blocks_read((length + BLOCK_SIZE - 1) // BLOCK_SIZE, MOST_READ, ALWAYS, SPARED)
    complete = blocks_estimated(length, MOST_READ, ALWAYS, SPARED, BLOCK_SIZE)
    channel, member, item = tl.arange(0, PADDED), tl.arange(0, PADDED_GROUP), tl.arange(0, TILE * PADDED_BLOCK)
    query = load_query(
        queries, last_query, layer, row, max_rows, head, channel[:, None], WINDOW, HEADS, GROUP, SIZE, PADDED_GROUP
    )
    scale = tl.load(scales + layer) * tl.load(key_scales + layer)
    to = log_sums + (pair.to(tl.int64) * KV_HEADS + head) * width * GROUP + member[None, :]
    all_top = tl.full([TILE, PADDED_GROUP], LOWEST, tl.float32)
    all_total = tl.zeros([TILE, PADDED_GROUP], tl.float32)
    for start in range(part * TILE, count, tl.num_programs(1) * TILE):
        place = start + tl.arange(0, TILE)[:, None]
        block = tl.load(read_blocks + pair * MOST_READ + place, mask=place < count, other=0)
        inside = (place < count) & (member[None, :] < GROUP)
        # Loaded before the keys are waited for.
        before = tl.load(to + block * GROUP, mask=inside & (block < complete), other=0.0).to(tl.float32)
        before = tl.where(inside & (block < complete), before, LOWEST)
        item_place, token = start + item // PADDED_BLOCK, item % PADDED_BLOCK
        item_block = tl.load(read_blocks + pair * MOST_READ + item_place, mask=item_place < count, other=0)
        written = (item_place < count) & (token < BLOCK_SIZE) & (item_block * BLOCK_SIZE + token < length)
        physical = tl.load(table + row * table_stride + item_block, mask=written, other=0)
        keys = load_keys(
            addresses, order, block_stride, head_stride, token_stride, layer, physical[:, None], head, token[:, None],
            channel[None, :], written[:, None] & (channel[None, :] < SIZE), SIZE, PLAIN, KEY,
        )  # fmt: skip
        logits = tl.dot(keys.to(DOT), query.to(DOT), input_precision="ieee") * scale
        logits = tl.where(written[:, None], logits, LOWEST).reshape(TILE, PADDED_BLOCK, PADDED_GROUP)
        top = tl.max(logits, axis=1)
        log_sum = as_stored(top + tl.log(tl.sum(tl.exp(logits - top[:, None, :]), axis=1)), log_sums)
        all_top, all_total = add_exp(all_top, all_total, tl.where(inside, log_sum, LOWEST), 1.0)
        all_top, all_total = add_exp(all_top, all_total, before, -1.0)
        tl.store(to + block * GROUP, log_sum, mask=inside)
    place = (pair * 2 * PARTS + PARTS + part) * HEADS + head * GROUP + member
    store_part(part_max, part_sum, place, all_top, all_total, member < GROUP)
