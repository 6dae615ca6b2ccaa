"""Exact attention mass of KV blocks, every cached key read again: the policies that `verify` is compared with."""

import torch
from torch import Tensor

from vllm_std.selection.base import Observation


def last_query(seen: Observation, layer: int) -> tuple[Tensor, Tensor]:
    """([reqs, 1, query heads, head size] the query of the token verified last, [reqs, 1] ones), float32."""
    queries = seen.queries[layer, torch.arange(len(seen.last), device=seen.last.device), seen.last]
    return queries[:, None].float(), torch.ones(len(seen.last), 1, device=seen.last.device)


def all_queries(seen: Observation, layer: int) -> tuple[Tensor, Tensor]:
    """([reqs, window, query heads, head size] all queries kept, [reqs, window] 1 for verified ones), float32."""
    row = torch.arange(seen.queries.shape[2], device=seen.queries.device)
    return seen.queries[layer].float(), (row <= seen.last[:, None]).float()


def exact_mass(seen: Observation, layer: int, queries: Tensor, weight: Tensor) -> Tensor:
    """[reqs, blocks] softmax attention of the weighted queries, summed over heads and the keys of a block."""
    mass = seen.zeros()
    num_blocks, block_size = mass.shape[-1], seen.mask.block_size
    unwritten = torch.arange(num_blocks * block_size, device=mass.device) >= seen.length[:, None]
    for row, table in enumerate(seen.block_table[:, :num_blocks]):
        keys = seen.keys(layer, table).transpose(0, 1).flatten(1, 2).float()  # [KV heads, keys, size]
        grouped = queries[row].unflatten(1, (keys.shape[0], -1)).permute(1, 2, 0, 3).flatten(1, 2)
        logits = grouped @ keys.transpose(1, 2) * seen.scales[layer]
        attention = logits.masked_fill(unwritten[row], -torch.inf).softmax(-1)
        blocks = attention.unflatten(-1, (num_blocks, -1)).sum(-1).unflatten(1, (-1, weight.shape[1]))
        mass[row] = torch.einsum("hgwb,w->b", blocks, weight[row])
    return mass


def peak_bytes(length: int, reqs: int, block_size: int, window: int, heads: int, kv_heads: int, head_size: int) -> int:
    """Most memory that `exact_mass` takes: keys as cached and in float32, three maps of logits, and four of scores."""
    keys, logits = length * kv_heads * head_size * 8, 3 * 4 * heads * length * window
    return keys + logits + 4 * 4 * reqs * length // block_size
