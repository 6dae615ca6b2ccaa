"""Masked block tables: what the kept blocks of a request are to the attention of a draft step."""

import triton
import triton.language as tl

from vllm_std.selection.kernels.top_blocks import as_ordered_bits, raised, selected, thresholds


@triton.jit
def _best(scores, known, wanted, PADDED_TOP: tl.constexpr, WAYS: tl.constexpr, STEPS: tl.constexpr):
    """[PADDED_TOP] bool, which of the first `known` of these scores are the `wanted` best."""
    place = tl.arange(0, PADDED_TOP)
    taken = place < known
    if wanted < known:
        bits = tl.where(taken, as_ordered_bits(tl.load(scores + place, mask=taken, other=0.0)), -1)
        low = (known * 0).to(tl.int64)
        step = low + 4294967296  # 2**32
        for _ in range(STEPS):
            step = step // WAYS
            count = tl.sum((bits[None, :] >= thresholds(low, step, WAYS)[:, None]).to(tl.int32), axis=1)
            low = raised(low, step, count >= wanted, WAYS)
        taken, _ = selected(bits, low, wanted - tl.sum((bits > low).to(tl.int32)))
    return taken


@triton.jit
def fill_tables(
    tables, seq_lens, blocks, scores, scored_until, context_lens, slots, budgets, table, width, table_stride, max_rows,
    columns, TOP: tl.constexpr, PADDED_TOP: tl.constexpr, PADDED_WIDTH: tl.constexpr, SINK: tl.constexpr,
    RECENT: tl.constexpr, BLOCK_SIZE: tl.constexpr, WAYS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """The masked block table of a request in one layer: [sink | best scored | newer | recent window ...].

    Newer blocks have left the recent window since the last scoring. seq_lens: [max_rows], tokens that the table holds.
    """
    row, layer = tl.program_id(0), tl.program_id(1)
    length = tl.load(context_lens + row)
    if length > 0:
        slot = tl.load(slots + row)
        first_recent = tl.maximum(length - RECENT, 0) // BLOCK_SIZE
        sink, budget = tl.minimum(first_recent, SINK), tl.load(budgets + length)
        until = tl.load(scored_until + slot)
        newer = tl.minimum(tl.maximum(first_recent - tl.maximum(until, SINK), 0), budget)
        known = tl.minimum(tl.maximum(until - SINK, 0), TOP)
        best = tl.minimum(budget - newer, known)
        place = (layer.to(tl.int64) * max_rows + slot) * TOP
        taken = _best(scores + place, known, best, PADDED_TOP, WAYS, STEPS)
        block = tl.load(blocks + place + tl.arange(0, PADDED_TOP), mask=taken, other=0)

        to = tables + (layer.to(tl.int64) * max_rows + row) * width
        source = table + row * table_stride
        column = sink + tl.cumsum(taken.to(tl.int32)) - 1
        tl.store(to + column, tl.load(source + block, mask=taken, other=0), mask=taken)
        column = tl.arange(0, PADDED_WIDTH)
        after = column - sink - best  # counts newer blocks and those from the recent window on
        block = tl.minimum(tl.where(column < sink, column, first_recent - newer + after), columns - 1)
        always = (column < width) & ((column < sink) | (after >= 0))
        tl.store(to + column, tl.load(source + block, mask=always, other=0), mask=always)
        if layer == 0:
            left_out = first_recent - sink - best - newer
            tl.store(seq_lens + row, length + 1 - left_out * BLOCK_SIZE)
    elif layer == 0:
        tl.store(seq_lens + row, tl.minimum(tl.load(seq_lens + row), 1))
