"""Attention mass of KV blocks: exact, where every cached key is read again, and from key summaries."""

import math

import torch
from torch import Tensor

from vllm_std.mask import MaskShape, cdiv
from vllm_std.selection.base import Observation
from vllm_std.selection.summaries import granule

CANDIDATES = 3  # times the blocks to choose: so many of the best by summary are scored by their keys
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
    outstanding key: so the keys of the best `CANDIDATES * top` candidates are read, and their exact attention joins. So
    are the few of sink and recent window, which hold most of the mass of many heads.
    """
    mass, means = seen.zeros(), seen.means[layer]
    queries = by_kv_head(last_query(seen, layer)[0], means.shape[1]) * seen.scales[layer]
    at_once = max(1, AT_ONCE // vectors(seen.mask, mass.shape[-1]))
    for rows in torch.arange(len(mass), device=mass.device).split(at_once):
        mass[rows] = _summarised_mass(seen, layer, means, queries[rows], rows)
    return mass


def blocks_read(mask: MaskShape, num_blocks: int) -> int:
    """Blocks of a request whose keys `summarised_mass` reads: candidates, sink and recent window."""
    return min(CANDIDATES * mask.top + mask.sink + cdiv(mask.recent, mask.block_size) + 1, num_blocks)


def vectors(mask: MaskShape, num_blocks: int) -> int:
    """Keys and mean keys of one KV head that `summarised_mass` reads for a request of so many blocks."""
    return num_blocks * mask.block_size // granule(mask.block_size) + blocks_read(mask, num_blocks) * mask.block_size


def _summarised_mass(seen: Observation, layer: int, means: Tensor, queries: Tensor, rows: Tensor) -> Tensor:
    """[reqs, blocks]; means: [blocks in all, KV heads, granules, size], queries: [reqs, KV heads, group, size]."""
    length, table, size = (
        seen.length[rows, None],
        seen.block_table[rows, : seen.num_blocks].long(),
        seen.mask.block_size,
    )
    index = torch.arange(table.shape[1], device=table.device)
    written, candidate = index * size < length, seen.mask.candidates(length[:, 0], table.shape[1])
    lse = block_lse(queries, means[table]) + math.log(size // means.shape[2])
    lse = lse.masked_fill((index >= length // size)[:, None, None], -torch.inf)
    looks = lse.softmax(-1).sum((1, 2)).masked_fill(written & ~candidate, torch.inf).masked_fill(~written, -1.0)
    read = looks.topk(blocks_read(seen.mask, table.shape[1]), dim=-1).indices  # [reqs, read]
    keys = seen.keys(layer, table.gather(1, read).flatten()).unflatten(0, read.shape)
    token = read[..., None] * size + torch.arange(size, device=table.device)
    exact = block_lse(queries, keys, token < length[..., None])
    return lse.scatter(-1, read[:, None, None].expand_as(exact), exact).softmax(-1).sum((1, 2))


def block_lse(queries: Tensor, keys: Tensor, written: Tensor | None = None) -> Tensor:
    """[reqs, KV heads, group, blocks] log-sum-exp of logits over the keys of a block.

    queries: [reqs, KV heads, group, size] float32, scaled; keys: [reqs, blocks, KV heads, keys, size];
    written: [reqs, blocks, keys] bool, all by default.
    """
    logits = torch.einsum("rhgd,rbhkd->rhgbk", queries, keys.float())
    if written is not None:
        logits = logits.masked_fill(~written[:, None, None], -torch.inf)
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
