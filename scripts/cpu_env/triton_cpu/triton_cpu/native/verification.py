"""Verification of drafts: `vllm.v1.worker.gpu.spec_decode.rejection_sampler` and `rejection_sampler_utils`."""

import math

import numba
import numpy as np
import torch
from numba import float32

from triton_cpu.native.compiled import compiled
from triton_cpu.native.launch import native
from triton_cpu.native.noise import philox_uniform, steps_have_seeds
from triton_cpu.native.statistics import lse, target_argmax, torch_lse

NO_TABLE, NO_ROW = np.zeros((0, 0), np.float32), np.zeros(0, np.float32)


@compiled("void(int64[:], int64[:, :], int32[:], int32[:])")
def _flatten(flat, sampled, counts, firsts):
    for row in range(len(counts)):
        for i in range(counts[row]):
            flat[firsts[row] + i] = sampled[row, i]


@native("gpu.spec_decode.rejection_sampler._flatten_sampled_kernel", unused="sampled_stride")
def flatten_sampled(flat_sampled_ptr, sampled_ptr, num_sampled_ptr, cu_num_logits_ptr):
    _flatten(flat_sampled_ptr.numpy(), sampled_ptr.numpy(), num_sampled_ptr.numpy(), cu_num_logits_ptr.numpy())


@native("gpu.spec_decode.rejection_sampler._gather_draft_sampled_kernel", unused="BLOCK_SIZE")
def gather_draft_sampled(
    draft_sampled_ptr, pos_ptr, input_ids_ptr, positions_ptr, logits_indices_ptr, expanded_idx_mapping_ptr,
    expanded_local_pos_ptr, prefill_len_ptr, num_logits,
):  # fmt: skip
    positions, places = positions_ptr[logits_indices_ptr], expanded_local_pos_ptr
    placeholder = (places > 0) & (positions - places < prefill_len_ptr[expanded_idx_mapping_ptr])
    pos_ptr[:num_logits] = positions
    draft_sampled_ptr[:num_logits] = input_ids_ptr[logits_indices_ptr].masked_fill(placeholder, -1)


def _of_drafts(target_logits, draft_logits, drafted, firsts, requests, temperatures):
    """([logits] the target's logit of the draft that follows each, [logits] the draft's own, divided by the
    temperature; empty where draft logits are none), float32 numpy. The last logits of a request mean nothing."""
    counts = (firsts[1:] - firsts[:-1]).long()
    tokens = drafted[1:].clamp(min=0).long()
    rows = torch.arange(len(tokens))
    of_target = target_logits[rows, tokens].float()
    if draft_logits is None:
        return of_target.numpy(), NO_ROW
    owners = requests.repeat_interleave(counts)[:-1]
    places = (rows - firsts[:-1].long().repeat_interleave(counts)[:-1]).clamp(max=draft_logits.shape[1] - 1)
    of_draft = draft_logits[owners, places, tokens.clamp(max=draft_logits.shape[2] - 1)].float()
    return of_target.numpy(), (of_draft / temperatures[owners]).numpy()


def _numpy(*tensors):
    """Statistics as numpy; an empty table for None."""
    return [NO_TABLE if tensor is None else tensor.numpy() for tensor in tensors]


@compiled(
    "void(float32[:], float32[:], float32[:], float32[:, :], float32[:, :], int32[:], float32[:, :], float32[:, :],"
    " int32[:], int64[:], float32[:])"
)
def _cumulate(
    log_p, of_target, of_draft, most, total, drafted, draft_most, draft_total, firsts, requests, temperatures
):
    for row in range(len(requests)):
        so_far = float32(0)
        if temperatures[requests[row]] == 0:
            continue
        for at in range(firsts[row], firsts[row + 1] - 1):
            if drafted[at + 1] >= 0:
                step = of_target[at] - lse(most, total, at)
                if len(of_draft):
                    step -= of_draft[at] - lse(draft_most, draft_total, at)
                so_far = min(so_far + step, float32(0))
            log_p[at] = so_far


@native(
    "gpu.spec_decode.rejection_sampler_utils._compute_cumulative_log_p_kernel",
    unused="target_logits_stride target_local_max_stride target_local_sumexp_stride draft_logits_stride_0 "
    "draft_logits_stride_1 draft_local_max_stride draft_local_sumexp_stride vocab_num_blocks PADDED_VOCAB_NUM_BLOCKS "
    "HAS_DRAFT_LOGITS",
)
def compute_cumulative_log_p(
    cumulative_log_p_ptr, target_logits_ptr, target_local_max_ptr, target_local_sumexp_ptr, draft_sampled_ptr,
    draft_logits_ptr, draft_local_max_ptr, draft_local_sumexp_ptr, cu_num_logits_ptr, idx_mapping_ptr, temp_ptr,
):  # fmt: skip
    of_drafts = _of_drafts(
        target_logits_ptr, draft_logits_ptr, draft_sampled_ptr, cu_num_logits_ptr, idx_mapping_ptr, temp_ptr
    )
    _cumulate(
        cumulative_log_p_ptr.numpy(), *of_drafts, *_numpy(target_local_max_ptr, target_local_sumexp_ptr),
        draft_sampled_ptr.numpy(), *_numpy(draft_local_max_ptr, draft_local_sumexp_ptr), cu_num_logits_ptr.numpy(),
        idx_mapping_ptr.numpy(), temp_ptr.numpy(),
    )  # fmt: skip


@native(
    "gpu.spec_decode.rejection_sampler_utils._compute_local_residual_mass_kernel",
    unused="local_residual_mass_stride target_logits_stride target_local_max_stride target_local_sumexp_stride "
    "draft_logits_stride_0 draft_logits_stride_1 draft_local_max_stride draft_local_sumexp_stride num_logits "
    "num_speculative_steps vocab_num_blocks PADDED_VOCAB_NUM_BLOCKS",
)
def compute_local_residual_mass(
    local_residual_mass_ptr, cumulative_log_p_ptr, target_logits_ptr, target_local_max_ptr, target_local_sumexp_ptr,
    draft_logits_ptr, draft_local_max_ptr, draft_local_sumexp_ptr, draft_sampled_ptr, expanded_idx_mapping_ptr,
    expanded_local_pos_ptr, temp_ptr, vocab_size, BLOCK_SIZE,
):  # fmt: skip
    places, requests = expanded_local_pos_ptr, expanded_idx_mapping_ptr
    wanted = torch.zeros(len(places), dtype=torch.bool)
    wanted[:-1] = (places[:-1] > 0) & (places[1:] > 0) & (draft_sampled_ptr[1 : len(places)] >= 0)
    rows = (wanted & (temp_ptr[requests] != 0)).nonzero()[:, 0]
    if not len(rows):
        return
    target = target_logits_ptr[rows, :vocab_size].float()
    target -= torch_lse(target_local_max_ptr[rows], target_local_sumexp_ptr[rows])
    draft = draft_logits_ptr[requests[rows], places[rows].long(), :vocab_size].float() / temp_ptr[requests[rows], None]
    draft -= torch_lse(draft_local_max_ptr[rows], draft_local_sumexp_ptr[rows])
    more = cumulative_log_p_ptr[rows - 1, None].exp() * target.exp() - draft.exp()
    for part, some in enumerate(more.clamp_(min=0).split(BLOCK_SIZE, dim=1)):
        local_residual_mass_ptr[rows, part] = some.sum(1)


@numba.njit
def _block_threshold(p, row, of_target, most, total, has_drafts, residual):
    """Below which a uniform number must lie for a block to end before the draft that `row` verifies."""
    if has_drafts:
        mass = float32(0)
        for part in range(residual.shape[1]):
            mass += residual[row, part]
    else:
        mass = p * (float32(1) - float32(math.exp(of_target[row] - lse(most, total, row))))
    whole = mass + float32(1) - p
    return mass / whole if whole > 0 else float32(1)


@compiled(
    "void(int64[:, :], int32[:], float32[:], float32[:], float32[:], float32[:], int64[:, :], float32[:, :],"
    " float32[:, :], int32[:], float32[:, :], float32[:, :], int32[:], int64[:], float32[:], int64[:], int64[:],"
    " float32[:], float32[:], float32[:, :], boolean, boolean, boolean)"
)
def _reject(
    sampled, accepted, target_lse, draft_lse, of_target, of_draft, argmax, most, total, drafted, draft_most,
    draft_total, firsts, requests, temperatures, seeds, positions, rates, log_p, residual, has_drafts, by_block,
    steps_have_seeds,
):  # fmt: skip
    for row in range(len(requests)):
        request, first = requests[row], firsts[row]
        greedy, many = temperatures[request] == 0, firsts[row + 1] - first - 1
        length, target, draft = 0, float32(0), float32(0)
        for step in range(many):
            at, token = first + step, np.int64(drafted[first + step + 1])
            if not greedy and token < 0:  # a placeholder
                break
            u = philox_uniform(seeds[request] ^ (step << 32 if by_block and steps_have_seeds else 0), positions[at])
            if by_block and not greedy:
                threshold = float32(math.exp(log_p[at]))
                if step < many - 1 and drafted[at + 2] >= 0:
                    threshold = _block_threshold(threshold, at + 1, of_target, most, total, has_drafts, residual)
                if u <= threshold:
                    length = step + 1
                sampled[row, step] = token
                continue
            if greedy:
                best = target_argmax(most, argmax, at)
                good = (u < rates[step] if len(rates) else best == token) and token >= 0
                sampled[row, step] = token if good else best
            else:
                target = lse(most, total, at)
                bar = float32(math.log(u))
                if has_drafts:
                    draft = lse(draft_most, draft_total, at)
                    bar += of_draft[at] - draft
                good = u < rates[step] if len(rates) else of_target[at] - target > bar
                sampled[row, step] = token
            if not good:
                break
            length += 1
        accepted[row] = length
        if by_block and not greedy and length < many:
            target = lse(most, total, first + length)
            if has_drafts:
                draft = lse(draft_most, draft_total, first + length)
        target_lse[row], draft_lse[row] = target, draft


@native(
    "gpu.spec_decode.rejection_sampler_utils._rejection_kernel",
    unused="sampled_stride target_logits_stride target_local_argmax_stride target_local_max_stride "
    "target_local_sumexp_stride draft_logits_stride_0 draft_logits_stride_1 draft_local_max_stride "
    "draft_local_sumexp_stride local_residual_mass_stride vocab_num_blocks fly_entropy_ptr fly_entropy_threshold "
    "PADDED_VOCAB_NUM_BLOCKS SYNTHETIC_MODE",
)
def reject(
    sampled_ptr, rejected_steps_ptr, target_rejected_logsumexp_ptr, draft_rejected_logsumexp_ptr, target_logits_ptr,
    target_local_argmax_ptr, target_local_max_ptr, target_local_sumexp_ptr, draft_sampled_ptr, draft_logits_ptr,
    draft_local_max_ptr, draft_local_sumexp_ptr, cu_num_logits_ptr, idx_mapping_ptr, temp_ptr, seed_ptr, pos_ptr,
    synthetic_conditional_rates_ptr, cumulative_log_p_ptr, local_residual_mass_ptr, HAS_DRAFT_LOGITS,
    USE_BLOCK_VERIFICATION, FLY_WINDOW_SIZE=0,
):  # fmt: skip
    if FLY_WINDOW_SIZE:
        return NotImplemented
    of_drafts = NO_ROW, NO_ROW
    if bool(temp_ptr[idx_mapping_ptr].any()):  # else nobody looks at more than the highest logits
        of_drafts = _of_drafts(
            target_logits_ptr, draft_logits_ptr, draft_sampled_ptr, cu_num_logits_ptr, idx_mapping_ptr, temp_ptr
        )
    rates, log_p = (
        NO_ROW if of is None else of.numpy() for of in (synthetic_conditional_rates_ptr, cumulative_log_p_ptr)
    )
    _reject(
        sampled_ptr.numpy(), rejected_steps_ptr.numpy(), target_rejected_logsumexp_ptr.numpy(),
        draft_rejected_logsumexp_ptr.numpy(), *of_drafts, target_local_argmax_ptr.numpy(),
        *_numpy(target_local_max_ptr, target_local_sumexp_ptr), draft_sampled_ptr.numpy(),
        *_numpy(draft_local_max_ptr, draft_local_sumexp_ptr), cu_num_logits_ptr.numpy(), idx_mapping_ptr.numpy(),
        temp_ptr.numpy(), seed_ptr.numpy(), pos_ptr.numpy(), rates, log_p, *_numpy(local_residual_mass_ptr),
        HAS_DRAFT_LOGITS, USE_BLOCK_VERIFICATION, steps_have_seeds(),
    )  # fmt: skip
