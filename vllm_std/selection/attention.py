"""Exact attention mass of each block, in its plainest form: every cached key is read again."""

import torch
from torch import Tensor

from vllm_std.mask import cdiv
from vllm_std.selection.base import Observation


def block_attention_bytes(
    max_length: int, window: int, heads: int, kv_heads: int, head_size: int, itemsize: int
) -> int:
    """Most memory `block_attention` takes at once: keys of a layer, as cached and in float32; three maps of logits."""
    return max_length * (kv_heads * head_size * (itemsize + 4) + 3 * 4 * heads * window)


def block_attention(seen: Observation, row: int, out: Tensor) -> Tensor:
    """Attention of one request's verified queries, summed over heads and over the keys of a block.

    row: the request's row in the batch. out: [layers, blocks] float32, written in place and returned.
    """
    num_blocks = cdiv(int(seen.max_length[row]), seen.block_size)
    blocks = seen.block_table[row, :num_blocks]
    position = torch.arange(num_blocks * seen.block_size, device=out.device)
    unwritten = position >= seen.length[row]
    window = seen.queries.shape[2]
    weight = (torch.arange(window, device=out.device) < seen.num_queries[row]).float()
    for layer, scale in enumerate(seen.scales):
        keys = seen.keys(layer, blocks).transpose(0, 1).flatten(1, 2).float()  # [KV heads, keys, head size]
        queries = seen.queries[layer, row].float()  # [window, query heads, head size]
        grouped = queries.unflatten(1, (keys.shape[0], -1)).permute(1, 2, 0, 3).flatten(1, 2)
        logits = grouped @ keys.transpose(1, 2) * scale  # [KV heads, group * window, keys]
        attention = logits.masked_fill(unwritten, -torch.inf).softmax(-1)
        mass = attention.unflatten(-1, (num_blocks, -1)).sum(-1).unflatten(1, (-1, window))
        out[layer, :num_blocks] = torch.einsum("hgwb,w->b", mass, weight)
    return out
