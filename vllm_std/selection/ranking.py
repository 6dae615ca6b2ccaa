"""What is remembered of each request from one scoring of its blocks to the next, and the masks made of it."""

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from vllm_std.mask import MaskShape
from vllm_std.patches.copies import async_tensor_h2d
from vllm_std.selection import native, plain
from vllm_std.selection.batch import BatchBuffers
from vllm_std.selection.keys import by_kernel, interpreted
from vllm_std.selection.reading import Reading, blocks_to_read


@triton.jit
def _order(score):
    """Scores as int32 in the same order; what is no score counts as 0."""
    return tl.where(score > 0, score, 0.0).to(tl.int32, bitcast=True)


@triton.jit
def _bits(mass, first_recent, written, block, SINK: tl.constexpr, READING: tl.constexpr):
    """Scores as `_order` has them; -1 for what cannot be picked. READING: sink and recent window come first."""
    candidate = (block >= SINK) & (block < first_recent)
    bits = _order(tl.load(mass + block, mask=candidate, other=0.0))
    others = tl.where(block < written, 0x7F800000, -1) if READING else -1
    return tl.where(candidate, bits, others)


@triton.jit
def _levels(low, worth, WAYS: tl.constexpr):
    """[WAYS] int32 among which the next bits of a threshold, worth so much, are sought; what is no score at the end."""
    return tl.minimum(low + (tl.arange(0, WAYS) + 1) * worth, 0x7FFFFFFF).to(tl.int32)


@triton.jit
def _climb(low, worth, holds, WAYS: tl.constexpr):
    """The threshold, raised as far as `holds`, [WAYS] and falling, lets it."""
    return low + tl.sum((holds & (tl.arange(0, WAYS) < WAYS - 1)).to(tl.int64)) * worth


@triton.jit(do_not_specialize=["first", "num_rows"])
def _pick(
    mass, width, chosen, scores, slots, frontier, scored, num_rows, first,
    K: tl.constexpr, PLACES: tl.constexpr, SINK: tl.constexpr, RECENT: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    READING: tl.constexpr, ALWAYS: tl.constexpr, SPARED: tl.constexpr, TILE: tl.constexpr, WAYS: tl.constexpr,
):  # fmt: skip
    """The K blocks of highest score of a (layer, request) pair, in increasing order; ties go to the earlier block.

    READING: chosen [pairs, K], with sink and recent window; as many as are to be read, K at most. Else chosen, scores
    [layers, PLACES, K] by slot and frontier [PLACES].
    """
    pair = tl.program_id(0)
    layer, row = (first + pair) // num_rows, (first + pair) % num_rows
    length = tl.load(scored + row)
    if length > 0:
        first_recent, written = tl.maximum(length - RECENT, 0) // BLOCK_SIZE, (length + BLOCK_SIZE - 1) // BLOCK_SIZE
        mass += pair.to(tl.int64) * width
        many = blocks_to_read(written, K, ALWAYS, SPARED) if READING else K
        low = (length * 0).to(tl.int64)  # becomes the score that so many have, or more
        worth = low + 4294967296  # 2**32
        found = written if READING else tl.maximum(first_recent - SINK, 0)  # so many have it
        while (worth > 1) & (found > many):
            worth = worth // WAYS
            levels = _levels(low, worth, WAYS)
            each = tl.zeros([WAYS, TILE], tl.int32)
            for start in range(0, written, TILE):
                bits = _bits(mass, first_recent, written, start + tl.arange(0, TILE), SINK, READING)
                each += (bits[None, :] >= levels[:, None]).to(tl.int32)
            count = tl.sum(each, axis=1)
            low = _climb(low, worth, count >= many, WAYS)
            found = tl.minimum(found, tl.min(tl.where(count >= many, count, written)))
        above = tl.zeros([TILE], tl.int32)
        for start in range(0, written, TILE):
            bits = _bits(mass, first_recent, written, start + tl.arange(0, TILE), SINK, READING)
            above += (bits > low).to(tl.int32)
        room = many - tl.sum(above)  # for ties
        to = pair.to(tl.int64) * K
        if not READING:
            slot = tl.load(slots + row)
            to = (layer.to(tl.int64) * PLACES + slot) * K
            if layer == 0:
                tl.store(frontier + slot, first_recent)
        taken = length * 0
        for start in range(0, written, TILE):
            block = start + tl.arange(0, TILE)
            bits = _bits(mass, first_recent, written, block, SINK, READING)
            tie = (bits == low).to(tl.int32)
            take = (bits > low) | ((tie > 0) & (tl.cumsum(tie) <= room))
            place = to + taken + tl.cumsum(take.to(tl.int32)) - 1
            tl.store(chosen + place, block, mask=take)
            if not READING:
                tl.store(scores + place, tl.load(mass + block, mask=take, other=0.0), mask=take)
            taken += tl.sum(take.to(tl.int32))
            room -= tl.sum(tie)


@triton.jit
def _fill(
    tables, width, seq_lens, blocks, scores, frontier, lengths, slots, budgets, table, table_stride, max_rows,
    columns, TOP: tl.constexpr, PADDED_TOP: tl.constexpr, PADDED_WIDTH: tl.constexpr, SINK: tl.constexpr,
    RECENT: tl.constexpr, BLOCK_SIZE: tl.constexpr, WAYS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """The masked block table of a request in one layer: [sink | remembered | newer | recent window ...]."""
    row, layer = tl.program_id(0), tl.program_id(1)
    length = tl.load(lengths + row)
    if length > 0:
        slot = tl.load(slots + row)
        first_recent = tl.maximum(length - RECENT, 0) // BLOCK_SIZE
        sink = tl.minimum(first_recent, SINK)
        budget = tl.load(budgets + length)
        known = tl.load(frontier + slot)
        fresh = tl.minimum(tl.maximum(first_recent - tl.maximum(known, SINK), 0), budget)
        known = tl.minimum(tl.maximum(known - SINK, 0), TOP)
        keep = tl.minimum(budget - fresh, known)

        place = tl.arange(0, PADDED_TOP)
        at = (layer.to(tl.int64) * max_rows + slot) * TOP + place
        take = place < known
        if keep < known:  # the best of them
            bits = tl.where(take, _order(tl.load(scores + at, mask=take, other=0.0)), -1)
            low = (length * 0).to(tl.int64)
            worth = low + 4294967296
            for _ in range(STEPS):
                worth = worth // WAYS
                levels = _levels(low, worth, WAYS)
                count = tl.sum((bits[None, :] >= levels[:, None]).to(tl.int32), axis=1)
                low = _climb(low, worth, count >= keep, WAYS)
            tie = (bits == low).to(tl.int32)
            room = keep - tl.sum((bits > low).to(tl.int32))
            take = (bits > low) | ((tie > 0) & (tl.cumsum(tie) <= room))
        block = tl.load(blocks + at, mask=take, other=0)

        to = tables + (layer.to(tl.int64) * max_rows + row) * width
        source = table + row * table_stride
        column = sink + tl.cumsum(take.to(tl.int32)) - 1
        tl.store(to + column, tl.load(source + block, mask=take, other=0), mask=take)
        column = tl.arange(0, PADDED_WIDTH)
        after = column - sink - keep  # counts the newer ones and those from the recent window on
        block = tl.minimum(tl.where(column < sink, column, first_recent - fresh + after), columns - 1)
        always = (column < width) & ((column < sink) | (after >= 0))
        tl.store(to + column, tl.load(source + block, mask=always, other=0), mask=always)
        if layer == 0:
            dropped = first_recent - sink - keep - fresh
            tl.store(seq_lens + row, length + 1 - dropped * BLOCK_SIZE)
    elif layer == 0:
        tl.store(seq_lens + row, tl.minimum(tl.load(seq_lens + row), 1))


def pick(
    mass: Tensor, chosen: Tensor, reading: Reading, mask: MaskShape, scored: Tensor, num_rows: int, first: int,
    pairs: int,
):  # fmt: skip
    """The blocks to read, in increasing order; in order of (layer, request) pairs.

    mass: [pairs, blocks] float32, not negative; chosen: [pairs, reading.most] int32, filled where scored, [reqs] int32,
    is not 0.
    """
    _pick[pairs,](
        mass, mass.shape[1], chosen, mass, scored, scored, scored, num_rows, first, reading.most, 0, mask.sink,
        mask.recent, mask.block_size, True, reading.always, reading.spared, _tile(mass), _ways(mass)[0],
        num_warps=_warps(mass),
    )  # fmt: skip


def _tile(mass: Tensor) -> int:
    """Blocks looked at together: on a GPU few, because most requests are much shorter than the longest may be."""
    return min(4096 if interpreted(mass) else 512, max(16, triton.next_power_of_2(mass.shape[1])))


def _warps(mass: Tensor) -> int:
    """One for each 256 blocks looked at together: fewer wait less for each other, and more programs run at once."""
    return max(1, min(4, _tile(mass) // 256))


def _ways(tensor: Tensor) -> tuple[int, int]:
    """(ways, steps) to find 32 bits."""
    return (256, 4) if interpreted(tensor) else (4, 16)


class Ranking:
    """The best blocks of each request and layer, by row of vLLM's request state.

    Blocks that have left the recent window since the last scoring were no candidates then: all of them are kept, in
    place of the lowest ranked. So a mask scored once still follows the end of a growing answer (paper, section 3.2),
    and one never scored is sink and recent blocks alone (StreamingLLM, arXiv 2309.17453).
    """

    def __init__(self, mask: MaskShape, num_layers: int, max_num_reqs: int, max_length: int, device: torch.device):
        self.mask = mask
        shape = (num_layers, max_num_reqs, mask.top)
        self.blocks = torch.zeros(shape, dtype=torch.int32, device=device)  # increasing
        self.scores = torch.zeros(shape, dtype=torch.float32, device=device)
        self.frontier = torch.zeros(max_num_reqs, dtype=torch.int32, device=device)  # blocks below it were candidates
        self.budget = mask.budget(torch.arange(max_length + 1)).to(device, torch.int32)  # by length

    def forget(self, slots: np.ndarray) -> None:
        """Nothing is known of these requests; slots: [n] on the host."""
        self.frontier[async_tensor_h2d(slots, self.frontier.device)] = 0

    def remember(self, mass: Tensor, batch: BatchBuffers, num_rows: int, first: int, pairs: int) -> None:
        """Keep the best of `pairs` (layer, request) pairs, where `batch.scored_lens` is not 0.

        mass: [pairs, blocks] float32, not negative, of pairs that begin at number `first`.
        """
        mask = self.mask
        if not by_kernel(mass):
            return plain.remember(self, mass, batch, first // num_rows)
        _pick[pairs,](
            mass, mass.stride(0), self.blocks, self.scores, batch.slots, self.frontier, batch.scored_lens, num_rows,
            first, mask.top, self.blocks.shape[1], mask.sink, mask.recent, mask.block_size, False, 0, 0, _tile(mass),
            _ways(mass)[0], num_warps=_warps(mass),
        )  # fmt: skip

    def fill(self, tables: Tensor, seq_lens: Tensor, batch: BatchBuffers, num_rows: int) -> None:
        """Masked block tables and the lengths that the first draft step attends to.

        tables: [layers, max_num_reqs, width] int32 block ids; seq_lens: [max_num_reqs] int32, the drafted token
        included. Rows that do not draft get a length of at most 1.
        """
        mask, (layers, max_rows, width) = self.mask, tables.shape
        if not by_kernel(tables):
            return native.fill(self, tables, seq_lens, batch, num_rows)
        _fill[num_rows, layers](
            tables, width, seq_lens, self.blocks, self.scores, self.frontier, batch.context_lens, batch.slots,
            self.budget, batch.block_table, batch.block_table.stride(0), max_rows, batch.block_table.shape[1], mask.top,
            triton.next_power_of_2(mask.top), triton.next_power_of_2(width), mask.sink, mask.recent, mask.block_size,
            *_ways(tables),
        )  # fmt: skip
