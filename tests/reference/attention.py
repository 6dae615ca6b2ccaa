"""Attention of the reference over whole contexts or kept blocks, through transformers' attention interface.

On a CPU it is torch's. On CUDA all passes but the prompt's are xformers' paged attention over the blocks kept, in
float16 or bfloat16: xformers has no CPU path and is imported there only. Its kernel needs a Triton that has block
pointers (3.6 does, 3.9 does not).
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

PAGED_QUERIES = 16  # the most that xformers' split-K kernel takes with a causal mask


@dataclass
class ForwardPass:
    """One forward pass of the model. kept: [layers] blocks that it attends to; None in a dense pass.

    What it leaves behind: queries: {layer: [tokens, heads, head size]}, with RoPE applied; scales: {layer: softmax
    scale}.
    """

    block_size: int
    kept: list[list[int]] | None = None
    queries: dict[int, Tensor] = field(default_factory=dict)
    scales: dict[int, float] = field(default_factory=dict)


def attend(module, query, key, value, attention_mask, scaling=None, std_pass: ForwardPass | None = None, **_):
    """transformers' attention interface; plain causal attention where no `std_pass` comes along.

    query: [1, heads, n, head size]; key, value: [1, KV heads, tokens, head size], the last n of them the queries' own.
    """
    n, tokens, kept = query.shape[2], key.shape[2], None
    if std_pass is not None:
        std_pass.queries[module.layer_idx] = query[0].transpose(0, 1)
        std_pass.scales[module.layer_idx] = scaling
        kept = std_pass.kept[module.layer_idx] if std_pass.kept else None
    if n == tokens:
        out = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
    elif query.is_cuda and std_pass is not None and n <= PAGED_QUERIES:
        every = list(range(math.ceil(tokens / std_pass.block_size)))
        out = paged_attention(query, key, value, kept or every, std_pass.block_size, scaling)
    else:
        visible = torch.ones(n, tokens, dtype=torch.bool, device=query.device).tril(tokens - n)
        if kept is not None and std_pass is not None:
            visible = visible & tokens_of(kept, tokens, std_pass.block_size).to(query.device)
        out = scaled_dot_product_attention(query, key, value, visible, scale=scaling, enable_gqa=True)
    return out.transpose(1, 2), None


def tokens_of(blocks: list[int], tokens: int, block_size: int) -> Tensor:
    """[tokens] bool, whether a token is in one of the blocks."""
    mask = torch.zeros(tokens, dtype=torch.bool)
    for block in blocks:
        mask[block * block_size : (block + 1) * block_size] = True
    return mask


def paged_attention(query, key, value, kept: list[int], block_size: int, scale: float) -> Tensor:
    """[1, heads, n, head size] by xformers; kept: blocks, the last block of the context among them.

    Every KV head with its query heads is a sequence of its own.
    """
    from xformers.ops import fmha
    from xformers.ops.fmha.attn_bias import PagedBlockDiagonalCausalWithOffsetPaddedKeysMask as PagedMask

    (_, kv_heads, tokens, _), n, group = key.shape, query.shape[2], query.shape[1] // key.shape[1]
    pages = math.ceil(tokens / block_size)
    unused = pages * block_size - tokens
    rows = [[head * pages + block for block in kept if block < pages] for head in range(kv_heads)]
    length = len(rows[0]) * block_size - unused
    table = torch.tensor(rows, dtype=torch.int32, device=query.device)
    mask = PagedMask.from_seqlens([n] * kv_heads, [length] * kv_heads, table, block_size, device=query.device)
    key, value = (
        pad(x[0], (0, 0, 0, unused)).view(1, -1, 1, x.shape[-1]).expand(-1, -1, group, -1) for x in (key, value)
    )
    queries = query[0].unflatten(0, (kv_heads, group)).transpose(1, 2).reshape(1, -1, group, query.shape[-1])
    # The kernel reads keys in tiles of 64, and a tile must not be wider than a page.
    kernel = type("Paged", (fmha.triton_splitk.FwOp,), {"BLOCK_N": min(64, block_size)})
    out = fmha.memory_efficient_attention_forward(queries, key, value, attn_bias=mask, scale=scale, op=kernel)
    return out.view(kv_heads, n, group, -1).transpose(1, 2).reshape(query.shape)
