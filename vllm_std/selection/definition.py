"""What selection does, in torch that can be read: what the kernels of a GPU and the loops of a CPU are tested against.

Arguments and results are those of the methods that call these functions. Nothing here is meant for a GPU.
"""

import math

import torch
from torch import Tensor

from vllm_std.mask import MaskShape, cdiv
from vllm_std.selection.batch import BatchBuffers
from vllm_std.selection.keys import KeyCache
from vllm_std.selection.reads import KeyReads

NONE = 2**30  # a block index that sorts after all others


def capture_queries(kept: Tensor, query: Tensor, query_start_loc: Tensor) -> None:
    """`QueryWindow.capture` of a layer. kept: [reqs, window, query heads, head size]."""
    window = torch.arange(kept.shape[1])
    begin, end = query_start_loc[:-1, None], query_start_loc[1:, None]
    rows = torch.maximum(end - len(window), begin) + window
    kept[: len(rows)] = query[torch.minimum(rows, end - 1).clamp(min=0)]


def completed_blocks(block_size: int, context_lens: Tensor, table: Tensor, rows: Tensor, backs: Tensor) -> Tensor:
    """[n] int64 physical blocks: of each row the complete block that is `backs` before the newest; rows, backs: [n]."""
    block = context_lens[rows.long()] // block_size - 1 - backs
    return table[rows.long(), block.clamp(min=0).long()][block >= 0].long()


def summarise_blocks(
    means: Tensor, cache: KeyCache, context_lens: Tensor, table: Tensor, rows: Tensor, backs: Tensor
) -> None:
    """`KeySummaries.update`; rows, backs: [n] as `completed_blocks` takes them."""
    physical = completed_blocks(cache.block_size, context_lens, table, rows, backs)
    for layer, means_of_layer in enumerate(means):
        keys = cache.read(layer, physical).unflatten(2, (means.shape[3], -1))
        means_of_layer[physical] = keys.float().mean(3).to(means.dtype)


def first_recent(mask: MaskShape, lengths: Tensor) -> Tensor:
    """[reqs] block in which the recent window begins."""
    return (lengths - mask.recent).clamp(min=0) // mask.block_size


def between(mask: MaskShape, lengths: Tensor, width: int) -> Tensor:
    """[reqs, width] bool: the blocks between sink and recent window."""
    index = torch.arange(width)
    return (index >= mask.sink) & (index < first_recent(mask, lengths)[:, None])


def key_logits(queries: Tensor, keys: Tensor) -> Tensor:
    """[reqs, KV heads, group, blocks, keys] logits.

    queries: [reqs, KV heads, group, size] float32, scaled; keys: [reqs, blocks, KV heads, keys, size].
    """
    return torch.einsum("rhgd,rbhkd->rhgbk", queries, keys.float())


def verify_scores(scorer, cache: KeyCache, batch: BatchBuffers, layer: int, rows: Tensor) -> Tensor:
    """[reqs, blocks] float32 scores of `Scorer.run` for a layer; rows: [reqs] of the batch."""
    lengths, size, means = batch.scored_lens[rows, None], scorer.mask.block_size, scorer.means[layer]
    table = batch.block_table[rows, : cdiv(int(lengths.max()), size)].long()
    query = scorer.queries[layer][rows, batch.last_query[rows]].float().unflatten(1, (means.shape[1], -1))
    query = query * scorer.scales[layer]
    log_sums = key_logits(query, means[table]).logsumexp(-1) + math.log(size // means.shape[2])
    incomplete = torch.arange(table.shape[1]) >= lengths // size
    log_sums = log_sums.masked_fill(incomplete[:, None, None], -torch.inf)
    blocks, read = read_blocks(scorer.mask, scorer.reads, log_sums.softmax(-1).sum((1, 2)), lengths)
    keys = cache.read(layer, table.gather(1, blocks).flatten()).unflatten(0, blocks.shape)
    unwritten = blocks[..., None] * size + torch.arange(size) >= lengths[..., None]
    exact = key_logits(query, keys).masked_fill(unwritten[:, None, None], -torch.inf).logsumexp(-1)
    blocks = blocks[:, None, None].expand_as(exact)
    exact = torch.where(read[:, None, None], exact, log_sums.gather(-1, blocks))
    return log_sums.scatter(-1, blocks, exact).softmax(-1).sum((1, 2))


def read_blocks(mask: MaskShape, reads: KeyReads, estimates: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The blocks whose keys may be read, best first, and whether they are: [reqs, n] int64, and bool.

    estimates: [reqs, blocks] scores by mean keys; lengths: [reqs, 1] tokens.
    """
    written = torch.arange(estimates.shape[1]) * mask.block_size < lengths
    candidate = between(mask, lengths[:, 0], estimates.shape[1])
    order = estimates.masked_fill(written & ~candidate, torch.inf).masked_fill(~written, -1.0)
    blocks = order.topk(min(reads.most, estimates.shape[1]), dim=-1).indices
    return blocks, torch.arange(blocks.shape[1]) < reads.blocks(cdiv(lengths, mask.block_size))


def score(scorer, cache: KeyCache, batch: BatchBuffers, num_rows: int, ranking) -> None:
    """`Scorer.run`."""
    rows = batch.scored_lens[:num_rows].nonzero()[:, 0]
    scores = torch.zeros(num_rows, scorer.workspace.width)
    for layer in range(len(scorer.means)):
        for some in rows.split(8) if len(rows) else ():  # few at once, which bounds the memory of a large batch
            found = verify_scores(scorer, cache, batch, layer, some)
            scores[some, : found.shape[1]] = found
        keep_top_k(ranking, scores, batch, layer)


def keep_top_k(ranking, scores: Tensor, batch: BatchBuffers, layer: int) -> None:
    """`Ranking.keep_top_k` of a layer. scores: [reqs, blocks], of the first rows of the batch."""
    rows = batch.scored_lens[: len(scores)].nonzero()[:, 0]
    mask, lengths, slots = ranking.mask, batch.scored_lens[rows], batch.slots[rows]
    scores = torch.where(scores[rows] > 0, scores[rows], 0.0)
    order = scores.masked_fill(~between(mask, lengths, scores.shape[1]), -1.0).sort(descending=True, stable=True)
    blocks = order.indices[:, : mask.top].masked_fill(order.values[:, : mask.top] < 0, NONE).sort().values
    ranking.blocks[layer, slots, : blocks.shape[1]] = blocks.int()
    ranking.scores[layer, slots, : blocks.shape[1]] = scores.gather(1, blocks.clamp(max=scores.shape[1] - 1))
    ranking.scored_until[slots] = first_recent(mask, lengths)


def fill_tables(ranking, tables: Tensor, seq_lens: Tensor, batch: BatchBuffers, num_rows: int) -> None:
    """`Ranking.fill_tables`: [sink | best scored | newer | recent window ...]."""
    rows = batch.context_lens[:num_rows].nonzero()[:, 0]
    seq_lens[:num_rows].clamp_(max=1)
    mask, lengths, slots = ranking.mask, batch.context_lens[rows, None].long(), batch.slots[rows]
    recent, until = first_recent(mask, lengths), ranking.scored_until[slots, None]
    sink, budget = recent.clamp(max=mask.sink), ranking.budget[lengths]
    newer = (recent - until.clamp(min=mask.sink)).clamp(min=0).minimum(budget)
    known = (until - mask.sink).clamp(0, mask.top)
    best = (budget - newer).minimum(known)
    scores = ranking.scores[:, slots].masked_fill(torch.arange(mask.top) >= known, -1.0)
    rank = scores.sort(descending=True, stable=True).indices.argsort()
    chosen = ranking.blocks[:, slots].masked_fill(rank >= best, NONE).sort().values
    column = torch.arange(tables.shape[2])
    block = torch.where(column < sink, column, recent - newer + column - sink - best)
    chosen = chosen.gather(2, (column - sink).clamp(0, mask.top - 1).expand(len(chosen), -1, -1))
    block = torch.where((column >= sink) & (column < sink + best), chosen, block)
    own = batch.block_table[rows].expand(len(tables), -1, -1)
    tables[:, rows] = own.gather(2, block.clamp(max=own.shape[2] - 1))
    seq_lens[rows] = (lengths + 1 - (recent - sink - best - newer) * mask.block_size)[:, 0].int()
