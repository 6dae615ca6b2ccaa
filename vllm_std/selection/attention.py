"""Attention mass of KV blocks: exact, where every cached key is read again, and from key summaries."""

import math

import torch
from torch import Tensor

from vllm_std.mask import MaskShape, cdiv
from vllm_std.selection.base import Observation
from vllm_std.selection.summaries import granule

CANDIDATES = 2  # times the blocks to choose: so many of the best by summary are scored by their keys
AT_ONCE = 2**16  # vectors of a layer gathered together, which bounds the memory of a large batch


def last_query(seen: Observation, layer: int) -> tuple[Tensor, Tensor]:
    """([reqs, 1, query heads, head size] the query of the token verified last, [reqs, 1] ones), float32."""
    last = (seen.num_queries - 1).clamp(min=0)
    queries = seen.queries[layer, torch.arange(len(last), device=last.device), last]
    return queries[:, None].float(), torch.ones(len(last), 1, device=last.device)


def all_queries(seen: Observation, layer: int) -> tuple[Tensor, Tensor]:
    """([reqs, window, query heads, head size] all queries kept, [reqs, window] 1 for verified ones), float32."""
    row = torch.arange(seen.queries.shape[2], device=seen.queries.device)
    return seen.queries[layer].float(), (row < seen.num_queries[:, None]).float()


def by_kv_head(queries: Tensor, kv_heads: int) -> Tensor:
    """[reqs, window, query heads, size] -> [reqs, KV heads, group * window, size]"""
    return queries.unflatten(2, (kv_heads, -1)).permute(0, 2, 3, 1, 4).flatten(2, 3)


def exact_mass(seen: Observation, layer: int, queries: Tensor, weight: Tensor) -> Tensor:
    """[reqs, blocks] softmax attention of the weighted queries, summed over heads and the keys of a block."""
    mass = seen.zeros()
    num_blocks, block_size = mass.shape[-1], seen.mask.block_size
    unwritten = torch.arange(num_blocks * block_size, device=mass.device) >= seen.length[:, None]
    for row, table in enumerate(seen.block_table[:, :num_blocks]):
        keys = seen.keys(layer, table).transpose(0, 1).flatten(1, 2).float()  # [KV heads, keys, size]
        logits = by_kv_head(queries[row : row + 1], keys.shape[0])[0] @ keys.transpose(1, 2) * seen.scales[layer]
        attention = logits.masked_fill(unwritten[row], -torch.inf).softmax(-1)
        blocks = attention.unflatten(-1, (num_blocks, -1)).sum(-1).unflatten(1, (-1, weight.shape[1]))
        mass[row] = torch.einsum("hgwb,w->b", blocks, weight[row])
    return mass


def summarised_mass(seen: Observation, layer: int) -> Tensor:
    """[reqs, blocks] the same of the query verified last, reading key summaries and a few blocks of keys.

    A mean key stands for the keys of its granule. That finds the blocks worth a look but underrates those with one
    outstanding key, so the keys of the best `CANDIDATES * top` candidates are read, and their exact attention joins.
    """
    mass, means = seen.zeros(), seen.means[layer]
    queries = by_kv_head(last_query(seen, layer)[0], means.shape[1]) * seen.scales[layer]
    at_once = max(1, AT_ONCE // vectors(seen.mask, mass.shape[-1]))
    for rows in torch.arange(len(mass), device=mass.device).split(at_once):
        mass[rows] = _summarised_mass(seen, layer, means, queries[rows], rows)
    return mass


def vectors(mask: MaskShape, num_blocks: int) -> int:
    """Keys and mean keys of one KV head that `summarised_mass` reads for a request of so many blocks."""
    read = min(CANDIDATES * mask.top, num_blocks)
    return num_blocks * mask.block_size // granule(mask.block_size) + read * mask.block_size


def _summarised_mass(seen: Observation, layer: int, means: Tensor, queries: Tensor, rows: Tensor) -> Tensor:
    """[reqs, blocks]; means: [blocks in all, KV heads, granules, size], queries: [reqs, KV heads, group, size]."""
    length, table = seen.length[rows], seen.block_table[rows, : seen.num_blocks].long()
    complete = torch.arange(table.shape[1], device=table.device) < (length // seen.mask.block_size)[:, None]
    lse = block_lse(queries, means[table]) + math.log(seen.mask.block_size // means.shape[2])
    lse = lse.masked_fill(~complete[:, None, None], -torch.inf)
    candidate = seen.mask.candidates(length, table.shape[1])
    by_summary = lse.softmax(-1).sum((1, 2)).masked_fill(~candidate, -1.0)
    best = by_summary.topk(min(CANDIDATES * seen.mask.top, table.shape[1]), dim=-1).indices  # [reqs, read]
    keys = seen.keys(layer, table.gather(1, best).flatten()).unflatten(0, best.shape)
    exact = block_lse(queries, keys)
    at = best[:, None, None].expand_as(exact)
    read = candidate.gather(1, best)[:, None, None]
    return lse.scatter(-1, at, torch.where(read, exact, lse.gather(-1, at))).softmax(-1).sum((1, 2))


def block_lse(queries: Tensor, keys: Tensor) -> Tensor:
    """[reqs, KV heads, group, blocks] log-sum-exp of logits over the keys of a block.

    queries: [reqs, KV heads, group, size] float32, scaled; keys: [reqs, blocks, KV heads, keys, size].
    """
    logits = torch.einsum("rhgd,rbhkd->rhgbk", queries, keys.float())
    return logits.logsumexp(-1)


def peak_bytes(
    mask: MaskShape, reqs: int, length: int, window: int, heads: int, kv_heads: int, head_size: int, itemsize: int
) -> int:
    """Most memory that scoring a layer takes, for `reqs` requests of `length` tokens.

    Keys as cached and in float32, for `summarised_mass` with as many requests as it takes at once or `exact_mass` with
    one; three maps of logits; four of scores.
    """
    num_blocks = cdiv(length, mask.block_size)
    gathered = max(AT_ONCE, vectors(mask, num_blocks), length) * kv_heads * head_size * (itemsize + 4)
    logits = 3 * 4 * heads * max(AT_ONCE, length * window)
    return gathered + logits + 4 * 4 * reqs * num_blocks
