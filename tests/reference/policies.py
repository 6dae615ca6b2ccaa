"""Scores of blocks by each policy: [blocks] float32, higher is better.

queries: [window, heads, head size] of verified tokens, the last verified one last; keys: [KV heads, length, head size];
scale: softmax scale.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from reference.options import CANDIDATES, GRANULE, SPARED, Options


def logits(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """[heads, queries, keys] float32"""
    grouped = queries.unflatten(1, (keys.shape[0], -1)).float()
    return torch.einsum("wkgd,knd->kgwn", grouped, keys.float()).flatten(0, 1) * scale


def attention(queries: Tensor, keys: Tensor, scale: float, options: Options) -> Tensor:
    """Attention to each block, summed over queries and heads."""
    shares = logits(queries, keys, scale).softmax(-1).sum((0, 1)).split(options.block_size)
    return torch.stack([block.sum() for block in shares])


def exact(queries: Tensor, keys: Tensor, scale: float, options: Options) -> Tensor:
    """Attention of the token verified last."""
    return attention(queries[-1:], keys, scale, options)


def verify(queries: Tensor, keys: Tensor, scale: float, options: Options) -> Tensor:
    """The same with the mean key of its granule in place of each key; but some blocks are scored by their keys: sink,
    recent window, and candidates, the best of the others."""
    by_keys = log_sums(logits(queries[-1:], keys, scale), options.block_size)
    sums = by_mean_keys(queries, keys, scale, options)
    read = read_by_key(sums.softmax(-1).sum(0).tolist(), keys.shape[1], options)
    sums[:, read] = by_keys[:, read]
    return sums.softmax(-1).sum(0)


def by_mean_keys(queries: Tensor, keys: Tensor, scale: float, options: Options) -> Tensor:
    """[heads, blocks] log-sum-exps of the token verified last, each key being its granule's mean; -inf for a block that
    is not complete, which has no means."""
    size, complete = options.block_size, keys.shape[1] // options.block_size
    granule = math.gcd(GRANULE, size)
    means = keys[:, : complete * size].float().unflatten(1, (-1, granule)).mean(2).repeat_interleave(granule, dim=1)
    missing = keys.shape[1] - complete * size
    sums = log_sums(logits(queries[-1:], pad(means, (0, 0, 0, missing)), scale), size)
    sums[:, complete:] = -torch.inf
    return sums


def log_sums(one_query: Tensor, block_size: int) -> Tensor:
    """[heads, blocks] log-sum-exp over the tokens of each block; one_query: logits, [heads, 1, tokens]."""
    blocks = one_query[:, 0].split(block_size, dim=-1)
    return torch.stack([block.logsumexp(-1) for block in blocks], dim=-1)


def read_by_key(estimates: list[float], length: int, options: Options) -> list[int]:
    """The blocks that are scored by their keys; estimates: [blocks] scores by mean keys."""
    blocks, between = options.blocks(length), options.between(length)
    always = [block for block in range(blocks) if block not in between]
    candidates = sorted(between, key=lambda block: -estimates[block])
    most = min(CANDIDATES * options.top, max(0, blocks - SPARED * options.top))
    return [*always, *candidates][: most + options.blocks(options.sink) + options.blocks(options.recent) + 1]


def streaming(queries: Tensor, keys: Tensor, scale: float, options: Options) -> Tensor:
    """The latest blocks (arXiv 2309.17453)."""
    return torch.arange(options.blocks(keys.shape[1]), device=keys.device).float()


def text(prompt_scores: Tensor, prompt_length: int, length: int, options: Options) -> Tensor:
    """The scores of the prompt's end (paper section 3.2); what has left the recent window since comes first, newest
    first."""
    scores = prompt_scores.sum() + torch.arange(options.blocks(length), device=prompt_scores.device)
    scored = options.first_recent(prompt_length)
    scores[:scored] = prompt_scores[:scored]
    return scores


POLICIES = {"exact": exact, "verify": verify, "text": attention, "streaming": streaming}  # text: at the prompt's end
