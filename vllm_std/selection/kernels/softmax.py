"""A softmax over the blocks of a request, whose log-sum-exps several programs compute.

log_sums [pairs, KV heads, blocks, group]: log-sum-exp of the logits of a block's keys, by query head; the heads of a
group lie together, so that what is stored and loaded of one block is one piece of memory.
part_max, part_sum [pairs, 2 * PARTS, heads] float32: the softmax's denominator, the sum of part_sum * exp(part_max)
over the rows. Each program that shares a pair leaves one row: those of `score_summaries` in the first half, those of
`score_keys`, which correct them, in the second.
"""

import triton
import triton.language as tl

from vllm_std.selection.kernels.loads import blocks_estimated

LOWEST = tl.constexpr(-1.0e30)  # logit of what is left out: -inf would make a NaN of a difference
LARGEST = tl.constexpr(6.0e4)  # magnitude of a log-sum-exp at most, which float16 can hold


@triton.jit
def as_stored(log_sum, log_sums):
    """A log-sum-exp as it will be loaded again, so that the denominator and its terms agree."""
    return tl.minimum(tl.maximum(log_sum, -LARGEST), LARGEST).to(log_sums.dtype.element_ty).to(tl.float32)


@triton.jit
def add_exp(top, total, log_term, SIGN: tl.constexpr):
    """(top, total) of the sum total * exp(top) after exp(log_term) is added or, with SIGN -1, subtracted."""
    other = tl.exp(-tl.abs(log_term - top))
    return tl.maximum(top, log_term), tl.where(log_term > top, total * other + SIGN, total + SIGN * other)


@triton.jit
def store_part(part_max, part_sum, place, top, total, inside):
    """One program's row of `part_max` and `part_sum`, from the sums of each line of a tile."""
    best = tl.max(top, axis=0)
    tl.store(part_max + place, best, mask=inside)
    tl.store(part_sum + place, tl.sum(total * tl.exp(top - best[None, :]), axis=0), mask=inside)


@triton.jit(do_not_specialize=["first", "num_rows", "parts"])
def block_shares(
    scores, part_max, part_sum, log_sums, scored_lens, first, num_rows, width, parts, WITH_KEYS: tl.constexpr,
    MOST_READ: tl.constexpr, ALWAYS: tl.constexpr, SPARED: tl.constexpr, PARTS: tl.constexpr, HEADS: tl.constexpr,
    GROUP: tl.constexpr, PADDED_HEADS: tl.constexpr, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The softmax over blocks, summed over heads: scores [pairs, width] float32, for a part of the blocks of a pair.

    WITH_KEYS: over all blocks, once `score_keys` has run; else over those that `score_summaries` has scored.
    parts: rows that the programs of either have left.
    """
    part, pair = tl.program_id(0), tl.program_id(1)
    length = tl.load(scored_lens + (first + pair) % num_rows)
    blocks = blocks_estimated(length, MOST_READ, ALWAYS, SPARED, BLOCK_SIZE)
    if WITH_KEYS:
        blocks = (length + BLOCK_SIZE - 1) // BLOCK_SIZE
    head, other = tl.arange(0, PADDED_HEADS)[:, None], tl.arange(0, 2 * PARTS)[None, :]
    known = (head < HEADS) & (other % PARTS < parts) & (other < (2 if WITH_KEYS else 1) * PARTS)
    place = (pair * 2 * PARTS + other) * HEADS + head
    tops = tl.load(part_max + place, mask=known, other=LOWEST)
    top = tl.max(tops, axis=1)[:, None]
    total = tl.sum(tl.load(part_sum + place, mask=known, other=0.0) * tl.exp(tops - top), axis=1)[:, None]
    weight = tl.where(head < HEADS, 1.0 / total, 0.0)
    begin = log_sums + (pair.to(tl.int64) * (HEADS // GROUP) + head // GROUP) * width * GROUP + head % GROUP
    for start in range(part * TILE, blocks, tl.num_programs(0) * TILE):
        block = start + tl.arange(0, TILE)
        inside = (head < HEADS) & (block < blocks)[None, :]
        log_sum = tl.load(begin + block[None, :] * GROUP, mask=inside, other=0.0).to(tl.float32)
        share = tl.sum(tl.exp(tl.where(inside, log_sum, LOWEST) - top) * weight, axis=0)
        tl.store(scores + pair.to(tl.int64) * width + block, share, mask=block < blocks)
