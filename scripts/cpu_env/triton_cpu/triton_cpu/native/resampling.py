"""The token that follows the accepted drafts: `vllm.v1.worker.gpu.spec_decode.rejection_sampler_utils`."""

import numpy as np
import torch

from triton_cpu.native.compiled import compiled
from triton_cpu.native.launch import native
from triton_cpu.native.noise import noised_argmax
from triton_cpu.native.statistics import target_argmax


@native(
    "gpu.spec_decode.rejection_sampler_utils._resample_kernel",
    unused="resampled_local_argmax_stride resampled_local_max_stride target_logits_stride draft_logits_stride_0 "
    "draft_logits_stride_1 contexts_ptr contexts_stride watermarking_ptr watermarking_skip_mask_ptr watermark_key_0 "
    "watermark_key_1 CONTEXT_WIDTH DEDUPLICATE_CONTEXTS",
)
def resample(
    resampled_local_argmax_ptr, resampled_local_max_ptr, target_logits_ptr, target_rejected_logsumexp_ptr,
    draft_logits_ptr, draft_rejected_logsumexp_ptr, rejected_step_ptr, cu_num_logits_ptr, expanded_idx_mapping_ptr,
    draft_sampled_ptr, temp_ptr, seed_ptr, pos_ptr, cumulative_log_p_ptr, vocab_size, BLOCK_SIZE, HAS_DRAFT_LOGITS,
    USE_FP64, USE_BLOCK_VERIFICATION, WATERMARK,
):  # fmt: skip
    if USE_FP64 or WATERMARK:
        return NotImplemented
    at = cu_num_logits_ptr[:-1].long() + rejected_step_ptr
    bonus, requests = at == cu_num_logits_ptr[1:] - 1, expanded_idx_mapping_ptr[at]
    temperatures = temp_ptr[requests]
    rows = (bonus | (temperatures != 0)).nonzero()[:, 0]  # others have the target's best token already
    if not len(rows):
        return
    logits = target_logits_ptr[at[rows], :vocab_size].float()
    after = draft_sampled_ptr[(at + 1).clamp(max=len(draft_sampled_ptr) - 1)]
    rejected = (~bonus & (after >= 0))[rows].nonzero()[:, 0]
    if len(rejected):
        of = rows[rejected]
        if HAS_DRAFT_LOGITS:
            drafts = draft_logits_ptr[requests[of], rejected_step_ptr[of].long(), :vocab_size].float()
            drafts = drafts / temperatures[of, None] - draft_rejected_logsumexp_ptr[of, None]
            target = logits[rejected] - target_rejected_logsumexp_ptr[of, None]
            if USE_BLOCK_VERIFICATION:
                target += torch.where(rejected_step_ptr[of] > 0, cumulative_log_p_ptr[at[of] - 1], 0.0)[:, None]
            logits[rejected] = torch.from_numpy(_residual(target.numpy(), drafts.numpy()))
        else:
            logits[rejected, after[of].long()] = -torch.inf
    argmax, most = resampled_local_argmax_ptr[rows].numpy(), resampled_local_max_ptr[rows].numpy()
    noised_argmax(
        logits.numpy(), seed_ptr[requests[rows]].numpy(), pos_ptr[at[rows]].numpy(), temperatures[rows].numpy(),
        BLOCK_SIZE, argmax, most,
    )  # fmt: skip
    resampled_local_argmax_ptr[rows], resampled_local_max_ptr[rows] = torch.from_numpy(argmax), torch.from_numpy(most)


def _residual(target: np.ndarray, drafts: np.ndarray) -> np.ndarray:
    """Logarithm of what the target's distribution has beyond the draft's, of their log probabilities."""
    with np.errstate(all="ignore"):
        ratio = np.exp(drafts - target)
        return np.where(ratio < 1, target + np.log1p(-ratio), np.float32(-np.inf)).astype(np.float32)


@compiled("void(int64[:, :], int32[:], int64[:, :], float32[:, :], int32[:], int64[:], float32[:])")
def _insert(sampled, counts, argmax, most, firsts, requests, temperatures):
    for row in range(len(counts)):
        at = firsts[row] + counts[row]
        counts[row] += 1
        if temperatures[requests[at]] != 0 or at == firsts[row + 1] - 1:
            sampled[row, at - firsts[row]] = target_argmax(most, argmax, row)


@native(
    "gpu.spec_decode.rejection_sampler_utils._insert_resampled_kernel",
    unused="sampled_stride resampled_local_argmax_stride resampled_local_max_stride resample_num_blocks "
    "PADDED_RESAMPLE_NUM_BLOCKS",
)
def insert_resampled(
    sampled_ptr, num_sampled_ptr, resampled_local_argmax_ptr, resampled_local_max_ptr, cu_num_logits_ptr,
    expanded_idx_mapping_ptr, temp_ptr,
):  # fmt: skip
    if resampled_local_max_ptr.dtype != torch.float32:
        return NotImplemented
    _insert(
        sampled_ptr.numpy(), num_sampled_ptr.numpy(), resampled_local_argmax_ptr.numpy(),
        resampled_local_max_ptr.numpy(), cu_num_logits_ptr.numpy(), expanded_idx_mapping_ptr.numpy(), temp_ptr.numpy(),
    )  # fmt: skip
