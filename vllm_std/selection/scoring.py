"""The scores of `verify`: attention of the token verified last to each block, from key summaries and a few keys.

look    a mean key stands for the keys of its granule: log-sum-exp of each complete block, by query head; not where all
        blocks will be read
mass    softmax over blocks, summed over heads: its terms first, then the shares
pick    the blocks worth reading: sink and recent window, which hold most of the mass of many heads, and the best
        `CANDIDATES * top` others; a mean underrates a block with one outstanding key, but it does find it
read    the exact log-sum-exp of those blocks, from their keys
mass, then `Ranking` keeps the best

Each is a launch over (layer, request) pairs, mass two, of as many pairs as the workspace holds; nothing waits for the
host, and grids depend on the number of rows alone, so that a CUDA graph holds them.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vllm_std.mask import MaskShape, cdiv
from vllm_std.selection import native
from vllm_std.selection.base import Round
from vllm_std.selection.keys import TRITON_DTYPES, KeyCache, by_kernel, interpreted, read_keys
from vllm_std.selection.ranking import Ranking, pick

CANDIDATES = 3  # times the blocks to choose: so many of the best by summary are scored by their keys
WORKSPACE = 2**27  # bytes of log-sum-exps at once
PARTS = 16  # programs at most that share the blocks of a pair
MOST_PROGRAMS = 65_535  # in the second dimension of a CUDA grid
LOWEST = tl.constexpr(-1.0e30)  # where -inf would make a NaN of a difference


@triton.jit
def _query(queries, last, layer, row, rows, head, channel, WINDOW, HEADS, GROUP, SIZE, PADDED_GROUP: tl.constexpr):
    """[channels, group] the query verified last, of the query heads of one KV head."""
    member = tl.arange(0, PADDED_GROUP)[None, :]
    place = ((layer.to(tl.int64) * rows + row) * WINDOW + tl.load(last + row)) * HEADS + head * GROUP + member
    return tl.load(queries + place * SIZE + channel, mask=(member < GROUP) & (channel < SIZE), other=0.0)


@triton.jit
def _worth_looking(length, READ: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """Complete blocks of a request; none where all that are written will be read anyway."""
    return tl.where((length + BLOCK_SIZE - 1) // BLOCK_SIZE > READ, length // BLOCK_SIZE, 0)


@triton.jit(do_not_specialize=["first", "num_rows"])
def _look(
    work, means, layer_stride, first, scored, last, queries, scales, table, table_stride, num_rows, max_rows, width,
    READ: tl.constexpr, WINDOW: tl.constexpr, HEADS: tl.constexpr, GROUP: tl.constexpr, PADDED_GROUP: tl.constexpr,
    GRANULE: tl.constexpr, TILE: tl.constexpr, DOT: tl.constexpr, KV_HEADS: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    SIZE: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    part, pair, head = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    layer, row = (first + pair) // num_rows, (first + pair) % num_rows
    complete = _worth_looking(tl.load(scored + row), READ, BLOCK_SIZE)
    channel, member = tl.arange(0, PADDED), tl.arange(0, PADDED_GROUP)
    query = _query(
        queries, last, layer, row, max_rows, head, channel[:, None], WINDOW, HEADS, GROUP, SIZE, PADDED_GROUP
    )
    scale, granules = tl.load(scales + layer), BLOCK_SIZE // GRANULE
    to = work + (pair.to(tl.int64) * HEADS + head * GROUP + member[None, :]) * width
    for start in range(part * TILE, complete, tl.num_programs(0) * TILE):
        block = start + tl.arange(0, TILE)
        physical = tl.load(table + row * table_stride + block, mask=block < complete, other=0).to(tl.int64)
        inside = (block[:, None] < complete) & (channel[None, :] < SIZE)
        begin = means + layer.to(tl.int64) * layer_stride + (physical * KV_HEADS + head)[:, None] * (granules * SIZE)
        top = tl.full([TILE, PADDED_GROUP], LOWEST, tl.float32)
        total = tl.zeros([TILE, PADDED_GROUP], tl.float32)
        for part_of_block in range(granules):
            mean = tl.load(begin + part_of_block * SIZE + channel[None, :], mask=inside, other=0.0)
            logits = tl.dot(mean.to(DOT), query.to(DOT), input_precision="ieee") * scale
            new = tl.maximum(top, logits)
            total = total * tl.exp(top - new) + tl.exp(logits - new)
            top = new
        lse = top + tl.log(total * GRANULE)
        tl.store(to + block[:, None], lse, mask=(block[:, None] < complete) & (member[None, :] < GROUP))


@triton.jit(do_not_specialize=["first", "num_rows"])
def _read(
    addresses, key_scales, order, block_stride, head_stride, token_stride, work, chosen, first, scored, last, queries,
    scales, table, table_stride, num_rows, max_rows, width, READ: tl.constexpr, TILE: tl.constexpr,
    WINDOW: tl.constexpr, HEADS: tl.constexpr, GROUP: tl.constexpr, PADDED_GROUP: tl.constexpr,
    PADDED_BLOCK: tl.constexpr, DOT: tl.constexpr, KV_HEADS: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    SIZE: tl.constexpr, PADDED: tl.constexpr, PLAIN: tl.constexpr, KEY: tl.constexpr,
):  # fmt: skip
    part, pair, head = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    layer, row = (first + pair) // num_rows, (first + pair) % num_rows
    length = tl.load(scored + row)
    count = tl.minimum((length + BLOCK_SIZE - 1) // BLOCK_SIZE, READ)
    channel, member, item = tl.arange(0, PADDED), tl.arange(0, PADDED_GROUP), tl.arange(0, TILE * PADDED_BLOCK)
    query = _query(
        queries, last, layer, row, max_rows, head, channel[:, None], WINDOW, HEADS, GROUP, SIZE, PADDED_GROUP
    )
    scale = tl.load(scales + layer) * tl.load(key_scales + layer)
    to = work + (pair.to(tl.int64) * HEADS + head * GROUP + member[None, :]) * width
    for start in range(part * TILE, count, tl.num_programs(0) * TILE):
        place, token = start + item // PADDED_BLOCK, item % PADDED_BLOCK
        block = tl.load(chosen + pair * READ + place, mask=place < count, other=0)
        written = (place < count) & (token < BLOCK_SIZE) & (block * BLOCK_SIZE + token < length)
        physical = tl.load(table + row * table_stride + block, mask=written, other=0)
        keys = read_keys(
            addresses, order, block_stride, head_stride, token_stride, layer, physical[:, None], head, token[:, None],
            channel[None, :], written[:, None] & (channel[None, :] < SIZE), SIZE, PLAIN, KEY,
        )  # fmt: skip
        logits = tl.dot(keys.to(DOT), query.to(DOT), input_precision="ieee") * scale
        logits = tl.where(written[:, None], logits, LOWEST).reshape(TILE, PADDED_BLOCK, PADDED_GROUP)
        top = tl.max(logits, axis=1)
        lse = top + tl.log(tl.sum(tl.exp(logits - top[:, None, :]), axis=1))
        place = start + tl.arange(0, TILE)
        block = tl.load(chosen + pair * READ + place, mask=place < count, other=0)
        tl.store(to + block[:, None], lse, mask=(place[:, None] < count) & (member[None, :] < GROUP))


@triton.jit(do_not_specialize=["first", "num_rows"])
def _terms(
    tops, totals, work, first, scored, num_rows, width, WHOLE: tl.constexpr, READ: tl.constexpr, HEADS: tl.constexpr,
    PADDED_HEADS: tl.constexpr, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Of a part of the blocks: the highest log-sum-exp of each head, and the sum of their exponentials below it."""
    part, pair = tl.program_id(0), tl.program_id(1)
    blocks = _blocks(tl.load(scored + (first + pair) % num_rows), WHOLE, READ, BLOCK_SIZE)
    head = tl.arange(0, PADDED_HEADS)
    begin = work + (pair.to(tl.int64) * HEADS + head[:, None]) * width
    top, total = tl.full([PADDED_HEADS], LOWEST, tl.float32), tl.zeros([PADDED_HEADS], tl.float32)
    for start in range(part * TILE, blocks, tl.num_programs(0) * TILE):
        block = start + tl.arange(0, TILE)[None, :]
        lse = tl.load(begin + block, mask=(head[:, None] < HEADS) & (block < blocks), other=LOWEST)
        new = tl.maximum(top, tl.max(lse, axis=1))
        total = total * tl.exp(top - new) + tl.sum(tl.exp(lse - new[:, None]), axis=1)
        top = new
    to = (pair * tl.num_programs(0) + part) * HEADS + head
    tl.store(tops + to, top, mask=head < HEADS)
    tl.store(totals + to, total, mask=head < HEADS)


@triton.jit
def _blocks(length, WHOLE: tl.constexpr, READ: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """How many share the mass: with WHOLE all that are written, else those that `_look` has looked at."""
    return (length + BLOCK_SIZE - 1) // BLOCK_SIZE if WHOLE else _worth_looking(length, READ, BLOCK_SIZE)


@triton.jit(do_not_specialize=["first", "num_rows"])
def _shares(
    mass, tops, totals, work, first, scored, num_rows, width, WHOLE: tl.constexpr, READ: tl.constexpr,
    HEADS: tl.constexpr, PADDED_HEADS: tl.constexpr, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr,
    PADDED_PARTS: tl.constexpr,
):  # fmt: skip
    """Of a part of the blocks: the softmax over all of them, summed over heads."""
    part, parts, pair = tl.program_id(0), tl.num_programs(0), tl.program_id(1)
    blocks = _blocks(tl.load(scored + (first + pair) % num_rows), WHOLE, READ, BLOCK_SIZE)
    head, other = tl.arange(0, PADDED_HEADS)[:, None], tl.arange(0, PADDED_PARTS)[None, :]
    known, at = (head < HEADS) & (other < parts), (pair * parts + other) * HEADS + head
    of_parts = tl.load(tops + at, mask=known, other=LOWEST)
    top = tl.max(of_parts, axis=1)[:, None]
    terms = tl.load(totals + at, mask=known, other=0.0) * tl.exp(of_parts - top)
    total = tl.sum(terms, axis=1)[:, None]
    begin = work + (pair.to(tl.int64) * HEADS + head) * width
    for start in range(part * TILE, blocks, parts * TILE):
        block = start + tl.arange(0, TILE)
        inside = (head < HEADS) & (block < blocks)[None, :]
        lse = tl.load(begin + block[None, :], mask=inside, other=LOWEST)
        share = tl.where(inside, tl.exp(lse - top) / total, 0.0)
        tl.store(mass + pair.to(tl.int64) * width + block, tl.sum(share, axis=0), mask=block < blocks)


def blocks_read(mask: MaskShape) -> int:
    """Blocks of a request whose keys are read: candidates, sink and recent window."""
    return CANDIDATES * mask.top + mask.sink + cdiv(mask.recent, mask.block_size) + 1


def pairs_at_once(num_layers: int, reqs: int, heads: int, width: int) -> int:
    """(layer, request) pairs that the workspace holds."""
    return max(1, min(num_layers * reqs, WORKSPACE // (heads * width * 4), MOST_PROGRAMS))


def workspace_bytes(mask: MaskShape, num_layers: int, reqs: int, heads: int, width: int) -> int:
    """Memory of a `Scorer`; width: most blocks of a request."""
    each = (heads + 1) * width + blocks_read(mask) + 2 * PARTS * heads
    return pairs_at_once(num_layers, reqs, heads, width) * each * 4


class Scorer:
    """Scores blocks for `verify`.

    means: `KeySummaries.means`; queries: `QueryWindow.kept`; scales: [layers] softmax scales; width: most blocks of a
    request.
    """

    def __init__(self, mask: MaskShape, means: Tensor, queries: Tensor, scales: Tensor, width: int):
        self.mask, self.means, self.queries, self.scales, self.width = mask, means, queries, scales, width
        layers, reqs, self.window, self.heads, _ = queries.shape
        self.pairs, self.read = pairs_at_once(layers, reqs, self.heads, width), blocks_read(mask)
        new: dict[str, Any] = {"device": means.device, "dtype": torch.float32}
        self.work = torch.empty(self.pairs, self.heads, width, **new)
        self.mass = torch.empty(self.pairs, width, **new)
        self.tops, self.totals = torch.empty(2, self.pairs, PARTS, self.heads, **new)
        self.chosen = torch.empty(self.pairs, self.read, device=means.device, dtype=torch.int32)

    def run(self, cache: KeyCache, seen: Round, num_rows: int, ranking: Ranking) -> None:
        """Score the first `num_rows` rows of a batch, where `seen.scored` is not 0, and have their best remembered."""
        if not by_kernel(self.means):
            return native.score(self, cache, seen, num_rows, ranking)
        total = len(self.means) * num_rows
        for first in range(0, total, self.pairs):
            pairs = min(self.pairs, total - first)
            self._look(cache, seen, num_rows, first, pairs)
            self._sum(cache, seen, num_rows, first, pairs, whole=False)
            pick(self.mass, self.chosen, self.read, self.mask, seen.scored, num_rows, first, pairs)
            self._read(cache, seen, num_rows, first, pairs)
            self._sum(cache, seen, num_rows, first, pairs, whole=True)
            ranking.remember(self.mass, seen, num_rows, first, pairs)

    def _sizes(self, cache: KeyCache) -> dict:
        group = self.heads // cache.kv_heads
        # Triton's interpreter cannot multiply 16-bit matrices, nor would it be faster.
        dot = tl.float32 if interpreted(self.means) else TRITON_DTYPES[self.queries.dtype]
        return {
            "WINDOW": self.window, "HEADS": self.heads, "GROUP": group, "DOT": dot,
            "PADDED_GROUP": max(16, triton.next_power_of_2(group)),
        }  # fmt: skip

    def _splits(self, pairs: int, kv_heads: int) -> int:
        """Programs that share a request's blocks: enough of them to keep a GPU busy, one for the interpreter."""
        if not self.means.is_cuda:
            return 1
        busy = 8 * torch.cuda.get_device_properties(self.means.device).multi_processor_count
        return max(1, min(PARTS, cdiv(busy, pairs * kv_heads)))

    def _common(self, seen: Round, num_rows: int) -> tuple:
        last, table = seen.last, seen.table
        return last, self.queries, self.scales, table, table.stride(0), num_rows, self.queries.shape[1], self.width

    # num_stages of what follows: so many that keys of later tiles are on their way while one is multiplied.

    def _look(self, cache: KeyCache, seen: Round, num_rows: int, first: int, pairs: int) -> None:
        layers, _, _, granules, _ = self.means.shape
        constants = {name: cache.constants[name] for name in ("KV_HEADS", "BLOCK_SIZE", "SIZE", "PADDED")}
        # More would not fit the shared memory of many GPUs, 99 KiB, where a key takes more than 256 bytes.
        stages = 5 if constants["PADDED"] * self.means.itemsize <= 256 else 2
        _look[self._splits(pairs, cache.kv_heads), pairs, cache.kv_heads](
            self.work, self.means, self.means.stride(0), first, seen.scored, *self._common(seen, num_rows),
            READ=self.read, GRANULE=self.mask.block_size // granules, TILE=1024 if interpreted(self.means) else 64,
            **constants, **self._sizes(cache), num_stages=stages,
        )  # fmt: skip

    def _read(self, cache: KeyCache, seen: Round, num_rows: int, first: int, pairs: int) -> None:
        padded = triton.next_power_of_2(self.mask.block_size)
        tile = max(1, (4096 if interpreted(self.means) else 64) // padded)
        _read[self._splits(pairs, cache.kv_heads), pairs, cache.kv_heads](
            *cache.arguments, self.work, self.chosen, first, seen.scored, *self._common(seen, num_rows),
            READ=self.read, TILE=tile, PADDED_BLOCK=padded, **cache.constants, **self._sizes(cache), num_stages=4,
        )  # fmt: skip

    def _sum(self, cache: KeyCache, seen: Round, num_rows: int, first: int, pairs: int, whole: bool) -> None:
        grid = self._splits(pairs, 1), pairs
        work = self.work, first, seen.scored, num_rows, self.width
        constants = {
            "WHOLE": whole, "READ": self.read, "HEADS": self.heads, "BLOCK_SIZE": self.mask.block_size,
            "PADDED_HEADS": triton.next_power_of_2(self.heads), "TILE": 1024 if interpreted(self.means) else 64,
        }  # fmt: skip
        _terms[grid](self.tops, self.totals, *work, **constants)
        _shares[grid](self.mass, self.tops, self.totals, *work, **constants, PADDED_PARTS=PARTS)
