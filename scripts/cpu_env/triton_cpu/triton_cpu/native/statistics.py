"""Statistics of logits by blocks of the vocabulary, as vLLM's rejection kernels keep them: the highest logit of a block
and whose it is, and the sum of exponentials over it (`rejection_sampler_utils._compute_local_logits_stats_kernel`)."""

import math

import numba
import numpy as np
import torch
from numba import float32

from triton_cpu.native.launch import native


def _statistics(logits, most, total, rows, block: int) -> None:
    """Highest logit and sum of exponentials of some rows, by block; logits: [rows, vocabulary] float32."""
    for part, some in enumerate(logits.split(block, dim=1)):
        top = some.amax(1)
        most[rows, part] = top
        total[rows, part] = torch.where(top > -torch.inf, (some - top[:, None]).exp_().sum(1), 0.0)


@native(
    "gpu.spec_decode.rejection_sampler_utils._compute_local_logits_stats_kernel",
    unused="target_local_argmax_stride target_local_max_stride target_local_sumexp_stride draft_local_max_stride "
    "draft_local_sumexp_stride target_logits_stride draft_logits_stride_0 draft_logits_stride_1 num_logits "
    "num_speculative_steps",
)
def compute_local_logits_stats(
    target_local_argmax_ptr, target_local_max_ptr, target_local_sumexp_ptr, draft_local_max_ptr,
    draft_local_sumexp_ptr, target_logits_ptr, draft_logits_ptr, expanded_idx_mapping_ptr, expanded_local_pos_ptr,
    temp_ptr, vocab_size, BLOCK_SIZE, HAS_DRAFT_LOGITS,
):  # fmt: skip
    places, requests = expanded_local_pos_ptr, expanded_idx_mapping_ptr
    drafted = torch.zeros(len(places), dtype=torch.bool)  # else the last logits of a request, which verify nothing
    drafted[:-1] = places[1:] > 0
    temperatures = temp_ptr[requests]
    greedy = (drafted & (temperatures == 0)).nonzero()[:, 0]
    if len(greedy):
        logits = target_logits_ptr[greedy, :vocab_size]
        for part, some in enumerate(logits.split(BLOCK_SIZE, dim=1)):
            most, argmax = some.max(1)
            target_local_max_ptr[greedy, part] = most.float()
            target_local_argmax_ptr[greedy, part] = argmax + part * BLOCK_SIZE
    rows = (drafted & (temperatures != 0)).nonzero()[:, 0]
    if len(rows):
        logits = target_logits_ptr[rows, :vocab_size].float()
        _statistics(logits, target_local_max_ptr, target_local_sumexp_ptr, rows, BLOCK_SIZE)
        if HAS_DRAFT_LOGITS:
            logits = draft_logits_ptr[requests[rows], places[rows].long(), :vocab_size].float()
            logits /= temperatures[rows, None]
            _statistics(logits, draft_local_max_ptr, draft_local_sumexp_ptr, rows, BLOCK_SIZE)


@numba.njit
def lse(most, total, row):
    top, all_ = float32(-np.inf), float32(0)
    for part in range(most.shape[1]):
        top = max(top, most[row, part])
    for part in range(most.shape[1]):
        all_ += total[row, part] * float32(math.exp(most[row, part] - top))
    return top + float32(math.log(all_))


@numba.njit
def target_argmax(most, argmax, row):
    best = 0
    for part in range(1, most.shape[1]):
        if most[row, part] > most[row, best]:
            best = part
    return argmax[row, best]


def torch_lse(most, total):
    """[rows, 1]"""
    top = most.amax(1, keepdim=True)
    return top + (total * (most - top).exp()).sum(1, keepdim=True).log()
