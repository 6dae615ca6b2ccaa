"""The kernels of `scoring.Scorer`, each a launch over (layer, request) pairs.

work [pairs, KV heads, blocks, group]: log-sum-exps of the logits of a block's keys, by query head; the heads of a group
lie together, so that what is written and found again of one block is one piece of memory. float32, or where the model
has 16 bits float16, whose rounding is at most that of the keys.
tops, totals [pairs, 2 * PARTS, heads] float32: what the softmax over blocks needs. Programs that share a pair leave one
row each, in the first half those of `_look`, in the other those of `_read`: the sum of totals * exp(tops) over the rows
is that of exp(work) over the blocks.
"""

import triton
import triton.language as tl

from vllm_std.selection.keys import read_keys
from vllm_std.selection.reading import blocks_to_read

LOWEST = tl.constexpr(-1.0e30)  # where -inf would make a NaN of a difference
MOST = tl.constexpr(6.0e4)  # that float16 can hold


@triton.jit
def _query(queries, last, layer, row, rows, head, channel, WINDOW, HEADS, GROUP, SIZE, PADDED_GROUP: tl.constexpr):
    """[channels, group] the query verified last, of the query heads of one KV head."""
    member = tl.arange(0, PADDED_GROUP)[None, :]
    place = ((layer.to(tl.int64) * rows + row) * WINDOW + tl.load(last + row)) * HEADS + head * GROUP + member
    return tl.load(queries + place * SIZE + channel, mask=(member < GROUP) & (channel < SIZE), other=0.0)


@triton.jit
def _looked_at(length, READ: tl.constexpr, ALWAYS: tl.constexpr, SPARED: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """Complete blocks of a request; none where all that are written will be read anyway."""
    written = (length + BLOCK_SIZE - 1) // BLOCK_SIZE
    return tl.where(written > blocks_to_read(written, READ, ALWAYS, SPARED), length // BLOCK_SIZE, 0)


@triton.jit
def _kept(lse, work):
    """As it will be found again, so that sums and terms agree."""
    return tl.minimum(tl.maximum(lse, -MOST), MOST).to(work.dtype.element_ty).to(tl.float32)


@triton.jit
def _add(top, total, term, SIGN: tl.constexpr):
    """(top, total) of a sum that is total * exp(top), with exp(term) added to it or, SIGN -1, taken away."""
    other = tl.exp(-tl.abs(term - top))
    return tl.maximum(top, term), tl.where(term > top, total * other + SIGN, total + SIGN * other)


@triton.jit
def _leave(tops, totals, at, top, total, inside):
    """A row of `tops` and `totals`, from those of each line of a tile."""
    best = tl.max(top, axis=0)
    tl.store(tops + at, best, mask=inside)
    tl.store(totals + at, tl.sum(total * tl.exp(top - best[None, :]), axis=0), mask=inside)


@triton.jit(do_not_specialize=["first", "num_rows"])
def _look(
    work, tops, totals, means, layer_stride, first, scored, last, queries, scales, table, table_stride, num_rows,
    max_rows, width, READ: tl.constexpr, ALWAYS: tl.constexpr, SPARED: tl.constexpr, PARTS: tl.constexpr,
    WINDOW: tl.constexpr, HEADS: tl.constexpr, GROUP: tl.constexpr, PADDED_GROUP: tl.constexpr, GRANULE: tl.constexpr,
    LOG_GRANULE: tl.constexpr, TILE: tl.constexpr, DOT: tl.constexpr, KV_HEADS: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    SIZE: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    head, part, pair = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    layer, row = (first + pair) // num_rows, (first + pair) % num_rows
    complete = _looked_at(tl.load(scored + row), READ, ALWAYS, SPARED, BLOCK_SIZE)
    channel, member = tl.arange(0, PADDED), tl.arange(0, PADDED_GROUP)
    query = _query(
        queries, last, layer, row, max_rows, head, channel[:, None], WINDOW, HEADS, GROUP, SIZE, PADDED_GROUP
    )
    scale, granules = tl.load(scales + layer), BLOCK_SIZE // GRANULE
    to = work + (pair.to(tl.int64) * KV_HEADS + head) * width * GROUP + member[None, :]
    all_top = tl.full([TILE, PADDED_GROUP], LOWEST, tl.float32)
    all_total = tl.zeros([TILE, PADDED_GROUP], tl.float32)
    for start in range(part * TILE, complete, tl.num_programs(1) * TILE):
        block = start + tl.arange(0, TILE)
        physical = tl.load(table + row * table_stride + block, mask=block < complete, other=0).to(tl.int64)
        inside = (block[:, None] < complete) & (channel[None, :] < SIZE)
        begin = means + layer.to(tl.int64) * layer_stride + (physical * KV_HEADS + head)[:, None] * (granules * SIZE)
        if granules == 1:
            mean = tl.load(begin + channel[None, :], mask=inside, other=0.0)
            lse = tl.dot(mean.to(DOT), query.to(DOT), input_precision="ieee") * scale + LOG_GRANULE
        else:
            top = tl.full([TILE, PADDED_GROUP], LOWEST, tl.float32)
            total = tl.zeros([TILE, PADDED_GROUP], tl.float32)
            for granule in range(granules):
                mean = tl.load(begin + granule * SIZE + channel[None, :], mask=inside, other=0.0)
                logits = tl.dot(mean.to(DOT), query.to(DOT), input_precision="ieee") * scale
                top, total = _add(top, total, logits, 1.0)
            lse = top + tl.log(total) + LOG_GRANULE
        lse = _kept(lse, work)
        term = tl.where(block[:, None] < complete, lse, LOWEST)
        all_top, all_total = _add(all_top, all_total, term, 1.0)
        tl.store(to + block[:, None] * GROUP, lse, mask=(block[:, None] < complete) & (member[None, :] < GROUP))
    at = (pair * 2 * PARTS + part) * HEADS + head * GROUP + member
    _leave(tops, totals, at, all_top, all_total, member < GROUP)


@triton.jit(do_not_specialize=["first", "num_rows"])
def _read(
    addresses, key_scales, order, block_stride, head_stride, token_stride, work, tops, totals, chosen, first, scored,
    last, queries, scales, table, table_stride, num_rows, max_rows, width, READ: tl.constexpr, ALWAYS: tl.constexpr,
    SPARED: tl.constexpr, PARTS: tl.constexpr, TILE: tl.constexpr, WINDOW: tl.constexpr, HEADS: tl.constexpr,
    GROUP: tl.constexpr, PADDED_GROUP: tl.constexpr, PADDED_BLOCK: tl.constexpr, DOT: tl.constexpr,
    KV_HEADS: tl.constexpr, BLOCK_SIZE: tl.constexpr, SIZE: tl.constexpr, PADDED: tl.constexpr, PLAIN: tl.constexpr,
    KEY: tl.constexpr,
):  # fmt: skip
    """The exact log-sum-exps of the blocks chosen, in place of those that `_look` has left."""
    head, part, pair = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    layer, row = (first + pair) // num_rows, (first + pair) % num_rows
    length = tl.load(scored + row)
    count = blocks_to_read((length + BLOCK_SIZE - 1) // BLOCK_SIZE, READ, ALWAYS, SPARED)
    complete = _looked_at(length, READ, ALWAYS, SPARED, BLOCK_SIZE)
    channel, member, item = tl.arange(0, PADDED), tl.arange(0, PADDED_GROUP), tl.arange(0, TILE * PADDED_BLOCK)
    query = _query(
        queries, last, layer, row, max_rows, head, channel[:, None], WINDOW, HEADS, GROUP, SIZE, PADDED_GROUP
    )
    scale = tl.load(scales + layer) * tl.load(key_scales + layer)
    to = work + (pair.to(tl.int64) * KV_HEADS + head) * width * GROUP + member[None, :]
    all_top = tl.full([TILE, PADDED_GROUP], LOWEST, tl.float32)
    all_total = tl.zeros([TILE, PADDED_GROUP], tl.float32)
    for start in range(part * TILE, count, tl.num_programs(1) * TILE):
        place = start + tl.arange(0, TILE)[:, None]
        block = tl.load(chosen + pair * READ + place, mask=place < count, other=0)
        inside = (place < count) & (member[None, :] < GROUP)
        # Asked for before the keys are waited for.
        before = tl.load(to + block * GROUP, mask=inside & (block < complete), other=0.0).to(tl.float32)
        before = tl.where(inside & (block < complete), before, LOWEST)
        item_place, token = start + item // PADDED_BLOCK, item % PADDED_BLOCK
        item_block = tl.load(chosen + pair * READ + item_place, mask=item_place < count, other=0)
        written = (item_place < count) & (token < BLOCK_SIZE) & (item_block * BLOCK_SIZE + token < length)
        physical = tl.load(table + row * table_stride + item_block, mask=written, other=0)
        keys = read_keys(
            addresses, order, block_stride, head_stride, token_stride, layer, physical[:, None], head, token[:, None],
            channel[None, :], written[:, None] & (channel[None, :] < SIZE), SIZE, PLAIN, KEY,
        )  # fmt: skip
        logits = tl.dot(keys.to(DOT), query.to(DOT), input_precision="ieee") * scale
        logits = tl.where(written[:, None], logits, LOWEST).reshape(TILE, PADDED_BLOCK, PADDED_GROUP)
        top = tl.max(logits, axis=1)
        lse = _kept(top + tl.log(tl.sum(tl.exp(logits - top[:, None, :]), axis=1)), work)
        all_top, all_total = _add(all_top, all_total, tl.where(inside, lse, LOWEST), 1.0)
        all_top, all_total = _add(all_top, all_total, before, -1.0)
        tl.store(to + block * GROUP, lse, mask=inside)
    at = (pair * 2 * PARTS + PARTS + part) * HEADS + head * GROUP + member
    _leave(tops, totals, at, all_top, all_total, member < GROUP)


@triton.jit(do_not_specialize=["first", "num_rows", "parts"])
def _shares(
    mass, tops, totals, work, first, scored, num_rows, width, parts, WHOLE: tl.constexpr, READ: tl.constexpr,
    ALWAYS: tl.constexpr, SPARED: tl.constexpr, PARTS: tl.constexpr, HEADS: tl.constexpr, GROUP: tl.constexpr,
    PADDED_HEADS: tl.constexpr, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Of a part of the blocks: the softmax over all of them, summed over heads.

    WHOLE: over all that are written, else over those that `_look` has looked at. parts: rows that either has left.
    """
    part, pair = tl.program_id(0), tl.program_id(1)
    length = tl.load(scored + (first + pair) % num_rows)
    blocks = _looked_at(length, READ, ALWAYS, SPARED, BLOCK_SIZE)
    if WHOLE:
        blocks = (length + BLOCK_SIZE - 1) // BLOCK_SIZE
    head, other = tl.arange(0, PADDED_HEADS)[:, None], tl.arange(0, 2 * PARTS)[None, :]
    known = (head < HEADS) & (other % PARTS < parts) & (other < (2 if WHOLE else 1) * PARTS)
    at = (pair * 2 * PARTS + other) * HEADS + head
    of_parts = tl.load(tops + at, mask=known, other=LOWEST)
    top = tl.max(of_parts, axis=1)[:, None]
    total = tl.sum(tl.load(totals + at, mask=known, other=0.0) * tl.exp(of_parts - top), axis=1)[:, None]
    worth = tl.where(head < HEADS, 1.0 / total, 0.0)
    begin = work + (pair.to(tl.int64) * (HEADS // GROUP) + head // GROUP) * width * GROUP + head % GROUP
    for start in range(part * TILE, blocks, tl.num_programs(0) * TILE):
        block = start + tl.arange(0, TILE)
        inside = (head < HEADS) & (block < blocks)[None, :]
        lse = tl.load(begin + block[None, :] * GROUP, mask=inside, other=0.0).to(tl.float32)
        share = tl.sum(tl.exp(tl.where(inside, lse, LOWEST) - top) * worth, axis=0)
        tl.store(mass + pair.to(tl.int64) * width + block, share, mask=block < blocks)
