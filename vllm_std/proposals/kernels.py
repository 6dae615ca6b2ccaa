"""The Triton kernels of draft passes; a CPU runs `loops` instead.

A request's tokens are those of vLLM's request state before `base`, the position of the token sampled last; that token
and the drafts after it stand in `drafts`. rows: [reqs] of vLLM's request state, -1 for a request that does not draft.
counts: [reqs] drafts so far; limit: [1] drafts that are wanted.
"""

import triton
import triton.language as tl

from vllm_std.proposals.matches import proposed

__all__ = ["accept_samples", "fill_drafts", "fill_logits", "prepare_pass"]


@triton.jit
def prepare_pass(
    input_ids, positions, seq_lens, sample_rows, sample_positions, steps, found, num_parts, rows, bases, counts, limit,
    masked_lens, tokens, tokens_stride, drafts, drafts_stride, max_model_len, gamma,
    QUERY_LEN: tl.constexpr, PADDED: tl.constexpr, PADDED_PARTS: tl.constexpr,
):  # fmt: skip
    """The inputs of a draft pass over QUERY_LEN tokens of each request; a request with all its drafts samples no more.

    masked_lens: [reqs] tokens that the first draft attends to.
    """
    row = tl.program_id(0)
    slot = tl.load(rows + row)
    base = tl.load(bases + row)
    wanted = tl.load(limit)
    count = tl.load(counts + row)
    done = tl.maximum(tl.minimum(count, wanted - 1), 0)
    last = base + done
    i = tl.arange(0, PADDED).to(tl.int64)
    own = tokens + tl.maximum(slot, 0) * tokens_stride
    drafted = drafts + row * drafts_stride
    inside = i < QUERY_LEN
    token = proposed(
        own, drafted, base, last, found + row * num_parts, num_parts, i - 1, inside & (i > 0), PADDED_PARTS
    )
    token = tl.where(i == 0, tl.load(drafted + done), token)
    to = row * QUERY_LEN + i
    tl.store(input_ids + to, token.to(tl.int32), mask=inside)
    tl.store(positions + to, tl.minimum(last + i, max_model_len - 1), mask=inside)
    samples = (slot >= 0) & (count < wanted) & (done + i < wanted)
    tl.store(sample_rows + to, tl.where(samples, slot, -1), mask=inside)
    tl.store(sample_positions + to, last + i, mask=inside)
    tl.store(steps + to, tl.minimum(done + i + 1, gamma), mask=inside)
    masked = tl.load(masked_lens + row)
    length = tl.where(slot >= 0, masked + done + QUERY_LEN - 1, tl.minimum(masked, 1) * QUERY_LEN)
    tl.store(seq_lens + row, length.to(tl.int32))


@triton.jit
def accept_samples(
    sampled, input_ids, rows, counts, outcomes, limit, drafts, drafts_stride,
    QUERY_LEN: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Append the samples of a pass to a request's drafts, up to the first one that was not proposed.

    outcomes: [reqs, 2, QUERY_LEN] proposals by number that came true, and that were compared with a sample; in the last
    place the drafts that were sampled, and the passes.
    """
    row = tl.program_id(0)
    count = tl.load(counts + row)
    room = tl.load(limit) - count
    if (tl.load(rows + row) >= 0) & (room > 0):
        i = tl.arange(0, PADDED)
        sample = tl.load(sampled + row * QUERY_LEN + i, mask=i < QUERY_LEN, other=-1)
        given = tl.load(input_ids + row * QUERY_LEN + i + 1, mask=i < QUERY_LEN - 1, other=-1)
        differs = (sample != given) | (i >= QUERY_LEN - 1)
        first = tl.min(tl.where(differs, i, PADDED), axis=0)
        taken = tl.minimum(first + 1, room)
        tl.store(drafts + row * drafts_stride + count + 1 + i, sample, mask=i < taken)
        tl.store(counts + row, count + taken)
        proposal, inside = i < QUERY_LEN - 1, i < QUERY_LEN
        true = outcomes + row * 2 * QUERY_LEN + i
        more = tl.where(proposal, (i < tl.minimum(first, room)).to(tl.int64), taken)
        tl.store(true, tl.load(true, mask=inside) + more, mask=inside)
        more = tl.where(proposal, (i < taken).to(tl.int64), 1)
        tl.store(true + QUERY_LEN, tl.load(true + QUERY_LEN, mask=inside) + more, mask=inside)


@triton.jit
def fill_drafts(
    drafts, drafts_stride, found, num_parts, rows, bases, counts, limit, tokens, tokens_stride,
    PADDED: tl.constexpr, PADDED_PARTS: tl.constexpr,
):  # fmt: skip
    """Proposals in the places that no sample has filled."""
    row = tl.program_id(0)
    slot = tl.load(rows + row)
    count = tl.load(counts + row)
    wanted = tl.load(limit)
    if (slot >= 0) & (count < wanted):
        i = tl.arange(0, PADDED).to(tl.int64)
        base = tl.load(bases + row)
        drafted = drafts + row * drafts_stride
        own = tokens + slot * tokens_stride
        missing = i < wanted - count
        places = found + row * num_parts
        token = proposed(own, drafted, base, base + count, places, num_parts, i, missing, PADDED_PARTS)
        tl.store(drafted + count + 1 + i, token, mask=missing)


@triton.jit
def fill_logits(
    logits, request_stride, step_stride, vocab_size, drafts, drafts_stride, rows, counts, limit, lowest,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Draft logits of certainty for drafts that are proposals. Programs: requests x drafts x parts of a vocabulary."""
    row, step = tl.program_id(0), tl.program_id(1)
    slot = tl.load(rows + row)
    if (slot >= 0) & (step >= tl.load(counts + row)) & (step < tl.load(limit)):
        token = tl.load(drafts + row * drafts_stride + step + 1)
        i = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
        to = logits + slot * request_stride + step * step_stride
        tl.store(to + i, tl.where(i == token, 0.0, lowest), mask=i < vocab_size)
