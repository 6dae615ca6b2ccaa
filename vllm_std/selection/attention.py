"""The exact attention that observation queries give to each KV block, for which all cached keys are read."""

import torch
from torch import Tensor

from vllm_std.selection.batch import DensePass


def all_queries(dense_pass: DensePass, layer: int) -> tuple[Tensor, Tensor]:
    """All observation queries of a layer, and 1 for those of verified tokens.

    Returns [reqs, window, query heads, head size] and [reqs, window], both float32.
    """
    window = torch.arange(dense_pass.queries.shape[2], device=dense_pass.queries.device)
    return dense_pass.queries[layer].float(), (window <= dense_pass.last_query[:, None]).float()


def block_attention(dense_pass: DensePass, layer: int, queries: Tensor, weights: Tensor) -> Tensor:
    """[reqs, blocks] float32: softmax attention of weighted queries, summed over heads and over the keys of a block.

    queries, weights: as `all_queries` returns them.
    """
    scores = dense_pass.zero_scores()
    num_blocks, block_size = scores.shape[-1], dense_pass.mask.block_size
    unwritten = torch.arange(num_blocks * block_size, device=scores.device) >= dense_pass.context_lens[:, None]
    for row, table in enumerate(dense_pass.block_table[:, :num_blocks]):
        keys = dense_pass.read_keys(layer, table).transpose(0, 1).flatten(1, 2).float()  # [KV heads, tokens, head size]
        by_kv_head = queries[row].unflatten(1, (keys.shape[0], -1)).permute(1, 2, 0, 3).flatten(1, 2)
        logits = by_kv_head @ keys.transpose(1, 2) * dense_pass.scales[layer]
        attention = logits.masked_fill(unwritten[row], -torch.inf).softmax(-1)
        blocks = attention.unflatten(-1, (num_blocks, -1)).sum(-1).unflatten(1, (-1, weights.shape[1]))
        scores[row] = torch.einsum("hgwb,w->b", blocks, weights[row])
    return scores


def peak_bytes(
    context_len: int, reqs: int, block_size: int, window: int, heads: int, kv_heads: int, head_size: int
) -> int:
    """Most memory that `block_attention` takes, in bytes: the keys of a request as cached and in float32, three maps of
    logits, and four of scores."""
    keys = context_len * kv_heads * head_size * 8
    logits = 3 * 4 * heads * context_len * window
    return keys + logits + 4 * 4 * reqs * context_len // block_size
