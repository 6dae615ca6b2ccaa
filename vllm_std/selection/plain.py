"""What selection does, in torch that can be read: what the kernels of a GPU and the loops of a CPU are tested against.

Arguments and results are those of the methods that call these functions. Nothing here is meant for a GPU.
"""

import math

import torch
from torch import Tensor

from vllm_std.mask import MaskShape
from vllm_std.selection.batch import BatchBuffers
from vllm_std.selection.keys import KeyCache
from vllm_std.selection.reading import Reading


def keep_queries(kept: Tensor, query: Tensor, query_start_loc: Tensor) -> None:
    """`QueryWindow.capture` of a layer. kept: [reqs, window, query heads, head size]."""
    window = torch.arange(kept.shape[1])
    begin, end = query_start_loc[:-1, None], query_start_loc[1:, None]
    rows = torch.maximum(end - len(window), begin) + window
    kept[: len(rows)] = query[torch.minimum(rows, end - 1).clamp(min=0)]


def completed(block_size: int, length: Tensor, table: Tensor, rows: Tensor, backs: Tensor) -> Tensor:
    """[n] physical ids, int64, of the complete blocks of some rows, counted back from the newest; rows, backs: [n]."""
    block = length[rows.long()] // block_size - 1 - backs
    return table[rows.long(), block.clamp(min=0).long()][block >= 0].long()


def summarise(means: Tensor, cache: KeyCache, length: Tensor, table: Tensor, rows: Tensor, backs: Tensor) -> None:
    """`KeySummaries.update`; rows, backs: [n] as `completed` takes them."""
    physical = completed(cache.block_size, length, table, rows, backs)
    for layer, kept in enumerate(means):
        keys = cache.read(layer, physical).unflatten(2, (means.shape[3], -1))
        kept[physical] = keys.float().mean(3).to(means.dtype)


def first_recent(mask: MaskShape, length: Tensor) -> Tensor:
    """[reqs] block in which the recent window begins."""
    return (length - mask.recent).clamp(min=0) // mask.block_size


def candidates(mask: MaskShape, length: Tensor, width: int) -> Tensor:
    """[reqs, width] bool: the blocks between sink and recent window."""
    index = torch.arange(width)
    return (index >= mask.sink) & (index < first_recent(mask, length)[:, None])


def block_lse(queries: Tensor, keys: Tensor) -> Tensor:
    """[reqs, KV heads, group, blocks] log-sum-exp of logits over the keys of a block.

    queries: [reqs, KV heads, group, size] float32; keys: [reqs, blocks, KV heads, keys, size].
    """
    return torch.einsum("rhgd,rbhkd->rhgbk", queries, keys.float())


def verify_mass(
    mask: MaskShape, reading: Reading, means: Tensor, queries: Tensor, scale: float, cache: KeyCache, layer: int,
    batch: BatchBuffers, rows: Tensor,
) -> Tensor:  # fmt: skip
    """[reqs, blocks] scores of `scoring.Scorer` for a layer; means, queries: of it; rows: [reqs] of the batch."""
    length, size = batch.scored_lens[rows, None], mask.block_size
    table = batch.block_table[rows, : -(-int(length.max()) // size)].long()
    index, read = torch.arange(table.shape[1]), min(reading.most, table.shape[1])
    query = queries[rows, batch.last_query[rows]].float().unflatten(1, (means.shape[1], -1)) * scale
    lse = block_lse(query, means[table]).logsumexp(-1) + math.log(size // means.shape[2])
    lse = lse.masked_fill((index >= length // size)[:, None, None], -torch.inf)
    written, candidate = index * size < length, candidates(mask, length[:, 0], len(index))
    looks = lse.softmax(-1).sum((1, 2)).masked_fill(written & ~candidate, torch.inf).masked_fill(~written, -1.0)
    chosen = looks.topk(read, dim=-1).indices
    keys = cache.read(layer, table.gather(1, chosen).flatten()).unflatten(0, chosen.shape)
    unwritten = chosen[..., None] * size + torch.arange(size) >= length[..., None]
    exact = block_lse(query, keys).masked_fill(unwritten[:, None, None], -torch.inf).logsumexp(-1)
    some = (torch.arange(read) < reading.blocks(-(-length // size)))[:, None, None]
    chosen = chosen[:, None, None].expand_as(exact)
    return lse.scatter(-1, chosen, torch.where(some, exact, lse.gather(-1, chosen))).softmax(-1).sum((1, 2))


def score(scorer, cache: KeyCache, batch: BatchBuffers, num_rows: int, ranking) -> None:
    """`Scorer.run`."""
    rows = batch.scored_lens[:num_rows].nonzero()[:, 0]
    mass = torch.zeros(num_rows, scorer.width)
    for layer, (means, queries, scale) in enumerate(zip(scorer.means, scorer.queries, scorer.scales)):
        for some in rows.split(8) if len(rows) else ():  # few at once, which bounds the memory of a large batch
            got = verify_mass(scorer.mask, scorer.reading, means, queries, scale, cache, layer, batch, some)
            mass[some, : got.shape[1]] = got
        ranking.remember(mass, batch, num_rows, layer * num_rows, num_rows)


def remember(ranking, mass: Tensor, batch: BatchBuffers, layer: int) -> None:
    """`Ranking.remember` of a layer. mass: [reqs, blocks], of the first rows of the batch."""
    rows = batch.scored_lens[: len(mass)].nonzero()[:, 0]
    mask, length, slots = ranking.mask, batch.scored_lens[rows], batch.slots[rows]
    scores = torch.where(mass[rows] > 0, mass[rows], 0.0)
    candidate = candidates(mask, length, scores.shape[1])
    best = scores.masked_fill(~candidate, -1.0).sort(descending=True, stable=True)
    index = best.indices[:, : mask.top].masked_fill(best.values[:, : mask.top] < 0, 2**30).sort().values
    kept = scores.gather(1, index.clamp(max=scores.shape[1] - 1))
    ranking.blocks[layer, slots, : index.shape[1]] = index.int()
    ranking.scores[layer, slots, : index.shape[1]] = kept
    ranking.frontier[slots] = first_recent(mask, length)


def fill(ranking, tables: Tensor, seq_lens: Tensor, batch: BatchBuffers, num_rows: int) -> None:
    """`Ranking.fill`."""
    rows = batch.context_lens[:num_rows].nonzero()[:, 0]
    seq_lens[:num_rows].clamp_(max=1)
    mask, length, slots = ranking.mask, batch.context_lens[rows, None].long(), batch.slots[rows]
    recent, frontier = first_recent(mask, length), ranking.frontier[slots, None]
    sink, budget = recent.clamp(max=mask.sink), ranking.budget[length]
    fresh = (recent - frontier.clamp(min=mask.sink)).clamp(min=0).minimum(budget)
    known = (frontier - mask.sink).clamp(0, mask.top)
    keep = (budget - fresh).minimum(known)
    place = torch.arange(mask.top)
    scores = ranking.scores[:, slots].masked_fill(place >= known, -1.0)
    rank = scores.sort(descending=True, stable=True).indices.argsort()
    best = ranking.blocks[:, slots].masked_fill(rank >= keep, 2**30).sort().values
    column = torch.arange(tables.shape[2])
    block = torch.where(column < sink, column, recent - fresh + column - sink - keep)
    chosen = best.gather(2, (column - sink).clamp(0, mask.top - 1).expand(len(best), -1, -1))
    block = torch.where((column >= sink) & (column < sink + keep), chosen, block)
    own = batch.block_table[rows].expand(len(tables), -1, -1)
    tables[:, rows] = own.gather(2, block.clamp(max=own.shape[2] - 1))
    seq_lens[rows] = (length + 1 - (recent - sink - keep - fresh) * mask.block_size)[:, 0].int()
