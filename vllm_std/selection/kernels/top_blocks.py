"""The blocks of highest score, found by their scores' bits: a threshold is raised until as many as wanted reach it.

Scores that are not negative have the order of their bits as integers. Blocks come out in increasing order of index; of
equal scores the earlier block is taken.
"""

import triton
import triton.language as tl

from vllm_std.selection.kernels.loads import blocks_read


@triton.jit
def as_ordered_bits(score):
    """Scores as int32 in the same order; what is no score, or negative, counts as 0."""
    return tl.where(score > 0, score, 0.0).to(tl.int32, bitcast=True)


@triton.jit
def thresholds(low, step, WAYS: tl.constexpr):
    """[WAYS] int32 thresholds above `low`, `step` apart; those beyond int32 at its end."""
    return tl.minimum(low + (tl.arange(0, WAYS) + 1) * step, 0x7FFFFFFF).to(tl.int32)


@triton.jit
def raised(low, step, enough, WAYS: tl.constexpr):
    """The threshold `low`, raised as far as `enough`, [WAYS] bool and falling, allows."""
    return low + tl.sum((enough & (tl.arange(0, WAYS) < WAYS - 1)).to(tl.int64)) * step


@triton.jit
def selected(bits, low, room):
    """Those of a tile above the threshold or, as far as there is room, at it; and how many are at it."""
    tie = (bits == low).to(tl.int32)
    return (bits > low) | ((tie > 0) & (tl.cumsum(tie) <= room)), tl.sum(tie)


@triton.jit
def _load_bits(scores, block, first_recent, written, SINK: tl.constexpr, WITH_ALWAYS: tl.constexpr):
    """Ordered bits of the scores of a tile of blocks between sink and recent window, -1 of the others.

    WITH_ALWAYS: blocks of sink and recent window come before all others instead.
    """
    between = (block >= SINK) & (block < first_recent)
    bits = as_ordered_bits(tl.load(scores + block, mask=between, other=0.0))
    return tl.where(between, bits, tl.where(block < written, 0x7F800000, -1) if WITH_ALWAYS else -1)


@triton.jit
def _threshold(
    scores, wanted, found, first_recent, written, SINK: tl.constexpr, WITH_ALWAYS: tl.constexpr, TILE: tl.constexpr,
    WAYS: tl.constexpr,
):  # fmt: skip
    """(highest threshold that `wanted` blocks reach, how many at it to take). found: blocks to choose from."""
    low = (written * 0).to(tl.int64)
    step = low + 4294967296  # 2**32
    while (step > 1) & (found > wanted):
        step = step // WAYS
        levels = thresholds(low, step, WAYS)
        each = tl.zeros([WAYS, TILE], tl.int32)
        for start in range(0, written, TILE):
            bits = _load_bits(scores, start + tl.arange(0, TILE), first_recent, written, SINK, WITH_ALWAYS)
            each += (bits[None, :] >= levels[:, None]).to(tl.int32)
        count = tl.sum(each, axis=1)
        low = raised(low, step, count >= wanted, WAYS)
        found = tl.minimum(found, tl.min(tl.where(count >= wanted, count, written)))
    above = tl.zeros([TILE], tl.int32)
    for start in range(0, written, TILE):
        bits = _load_bits(scores, start + tl.arange(0, TILE), first_recent, written, SINK, WITH_ALWAYS)
        above += (bits > low).to(tl.int32)
    return low, wanted - tl.sum(above)


@triton.jit(do_not_specialize=["first", "num_rows"])
def choose_candidates(
    scores, read_blocks, scored_lens, width, num_rows, first, MOST_READ: tl.constexpr, ALWAYS: tl.constexpr,
    SPARED: tl.constexpr, SINK: tl.constexpr, RECENT: tl.constexpr, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr,
    WAYS: tl.constexpr,
):  # fmt: skip
    """The blocks of a pair whose keys are to be read: sink, recent window, and the best others.

    read_blocks: [pairs, MOST_READ] int32, of which the first `KeyReads.blocks` are written.
    """
    pair = tl.program_id(0)
    length = tl.load(scored_lens + (first + pair) % num_rows)
    if length > 0:
        first_recent, written = tl.maximum(length - RECENT, 0) // BLOCK_SIZE, (length + BLOCK_SIZE - 1) // BLOCK_SIZE
        scores += pair.to(tl.int64) * width
        wanted = blocks_read(written, MOST_READ, ALWAYS, SPARED)
        low, room = _threshold(scores, wanted, written, first_recent, written, SINK, True, TILE, WAYS)
        to, count = pair.to(tl.int64) * MOST_READ, length * 0
        for start in range(0, written, TILE):
            block = start + tl.arange(0, TILE)
            taken, ties = selected(_load_bits(scores, block, first_recent, written, SINK, True), low, room)
            place = to + count + tl.cumsum(taken.to(tl.int32)) - 1
            tl.store(read_blocks + place, block, mask=taken)
            count += tl.sum(taken.to(tl.int32))
            room -= ties


@triton.jit(do_not_specialize=["first", "num_rows"])
def keep_top_k(
    scores, blocks, kept_scores, scored_until, slots, scored_lens, width, num_rows, first, TOP: tl.constexpr,
    SLOTS: tl.constexpr, SINK: tl.constexpr, RECENT: tl.constexpr, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr,
    WAYS: tl.constexpr,
):  # fmt: skip
    """The TOP best blocks of a pair between sink and recent window, with their scores, by slot.

    blocks, kept_scores: [layers, SLOTS, TOP]; scored_until: [SLOTS], the block in which the recent window begins.
    """
    pair = tl.program_id(0)
    layer, row = (first + pair) // num_rows, (first + pair) % num_rows
    length = tl.load(scored_lens + row)
    if length > 0:
        first_recent, written = tl.maximum(length - RECENT, 0) // BLOCK_SIZE, (length + BLOCK_SIZE - 1) // BLOCK_SIZE
        scores += pair.to(tl.int64) * width
        between = tl.maximum(first_recent - SINK, 0)
        low, room = _threshold(scores, TOP, between, first_recent, written, SINK, False, TILE, WAYS)
        slot = tl.load(slots + row)
        if layer == 0:
            tl.store(scored_until + slot, first_recent)
        to = (layer.to(tl.int64) * SLOTS + slot) * TOP
        for start in range(0, written, TILE):
            block = start + tl.arange(0, TILE)
            taken, ties = selected(_load_bits(scores, block, first_recent, written, SINK, False), low, room)
            place = to + tl.cumsum(taken.to(tl.int32)) - 1
            tl.store(blocks + place, block, mask=taken)
            tl.store(kept_scores + place, tl.load(scores + block, mask=taken, other=0.0), mask=taken)
            to += tl.sum(taken.to(tl.int32))
            room -= ties
