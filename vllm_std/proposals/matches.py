"""The Triton kernels that look n-grams up; a CPU runs `loops` instead. What their parameters are, `kernels` says."""

import triton
import triton.language as tl

__all__ = ["find_matches"]


@triton.jit
def token_at(tokens, drafts, base, at, mask):
    """Tokens at some positions of a request."""
    verified = tl.load(tokens + at, mask=mask & (at < base), other=0).to(tl.int64)
    drafted = tl.load(drafts + at - base, mask=mask & (at >= base), other=0)
    return tl.where(at < base, verified, drafted)


@triton.jit
def find_matches(
    found, num_parts, rows, bases, counts, limit, tokens, tokens_stride, drafts, drafts_stride, placeholders,
    MIN_N: tl.constexpr, MAX_N: tl.constexpr, PLACEHOLDERS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """found[request, part]: n * 2**32 + the position after it, of the longest earlier n-gram like a request's last
    tokens, and the latest of these; 0 for none. A part is SIZE positions that an n-gram may end at."""
    row, part = tl.program_id(0), tl.program_id(1)
    slot = tl.load(rows + row)
    count = tl.load(counts + row)
    base = tl.load(bases + row)
    last = base + count
    best = tl.zeros((), tl.int64)
    if (slot >= 0) & (count < tl.load(limit)) & (part * SIZE < last):
        own = tokens + slot * tokens_stride
        drafted = drafts + row * drafts_stride
        at = part * SIZE + tl.arange(0, SIZE).to(tl.int64)
        alike = at < last
        following = token_at(own, drafted, base, at + 1, alike)
        for i in tl.static_range(PLACEHOLDERS):
            alike = alike & (following != tl.load(placeholders + i))
        length = tl.zeros([SIZE], tl.int64)
        for i in tl.static_range(MAX_N):
            wanted = token_at(own, drafted, base, last - i, last >= i)
            alike = alike & (at >= i) & (token_at(own, drafted, base, at - i, alike & (at >= i)) == wanted)
            length += alike.to(tl.int64)
        best = tl.max(tl.where(length >= MIN_N, length * 4294967296 + at + 1, 0), axis=0)
    tl.store(found + row * num_parts + part, best)


@triton.jit
def proposed(own, drafted, base, last, found, num_parts, which, mask, PADDED_PARTS: tl.constexpr):
    """The tokens proposed after position `last`, by number from 0 up; that token itself where no n-gram was found.

    What follows an n-gram up to `last` is taken to be repeated after it.
    """
    part = tl.arange(0, PADDED_PARTS)
    best = tl.max(tl.load(found + part, mask=part < num_parts, other=0), axis=0)
    begin = best % 4294967296
    at = tl.where(best > 0, begin + which % tl.maximum(last + 1 - begin, 1), last)
    return token_at(own, drafted, base, at, mask)
