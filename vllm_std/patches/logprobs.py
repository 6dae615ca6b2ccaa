"""Logprobs of token ids that a request names (`SamplingParams.logprob_token_ids`), in passes that verify drafts.

vLLM's `RejectionSampler` returns the logprobs of sampled and most likely tokens only. Its `Sampler`, which decodes
without drafts, knows the named ones too; so the same function is called here, for each verified token.
"""

import torch
from vllm.v1.worker.gpu.sample.logprob import compute_topk_scores
from vllm.v1.worker.gpu.sample.sampler import Sampler
from vllm.v1.worker.gpu.spec_decode.rejection_sampler import RejectionSampler, _flatten_sampled_kernel

from vllm_std.patches.wrapping import Patch, wrap

NAMED_LOGPROBS = Patch(
    name="named logprobs",
    replaces=(
        "vllm.v1.worker.gpu.spec_decode.rejection_sampler.RejectionSampler._verify and _get_logprobs_tensors, "
        "vllm.v1.worker.gpu.sample.sampler.Sampler.get_logprobs_dims"
    ),
    why="a pass that verifies drafts leaves out SamplingParams.logprob_token_ids, also for requests without drafts",
    upstream="none",
    remove_when="vLLM's RejectionSampler returns them",
)


def install() -> None:
    """Safe to call any number of times; once only, in a process whose worker drafts with std."""
    wrap(RejectionSampler, "_verify", _verify)
    wrap(RejectionSampler, "_get_logprobs_tensors", _get_logprobs_tensors)
    wrap(Sampler, "get_logprobs_dims", _get_logprobs_dims)


def _verify(original, self, logits, draft_logits, draft_sampled, pos, cu_num_logits, idx_mapping, idx_mapping_np,
            expanded_idx_mapping, *args, **kwargs):  # fmt: skip
    """Keep which requests the rows of logits belong to, for the logprobs that vLLM computes of them next."""
    self.std_rows = expanded_idx_mapping, idx_mapping_np
    return original(
        self, logits, draft_logits, draft_sampled, pos, cu_num_logits, idx_mapping, idx_mapping_np,
        expanded_idx_mapping, *args, **kwargs,
    )  # fmt: skip


def _get_logprobs_tensors(
    original, self, sampled, num_sampled, logits, cu_num_logits, cu_num_logits_np, max_num_logprobs
):
    """sampled: [reqs, gamma + 1] tokens, of which num_sampled, [reqs], count; logits: [rows, vocabulary]."""
    expanded_idx_mapping, idx_mapping_np = self.std_rows
    named = self.sampler.logprob_token_ids_state
    most = named.max_num_token_ids(idx_mapping_np)
    if not most:
        return original(self, sampled, num_sampled, logits, cu_num_logits, cu_num_logits_np, max_num_logprobs)
    flat = torch.zeros(len(logits), dtype=sampled.dtype, device=sampled.device)
    _flatten_sampled_kernel[(len(num_sampled),)](
        flat, sampled, sampled.stride(0), num_sampled, cu_num_logits, num_warps=1
    )
    return compute_topk_scores(
        logits, max(0, max_num_logprobs), flat, cu_num_logits_np.tolist(), logprob_token_ids_state=named,
        expanded_idx_mapping=expanded_idx_mapping, max_per_req_token_ids=most,
        logits_mode=self.sampler.logprobs_mode in ("raw_logits", "processed_logits"),
    )  # fmt: skip


def _get_logprobs_dims(original, self, idx_mapping_np, *args, **kwargs):
    """What tensor-parallel ranks that share the sampling exchange: the named tokens too, drafts or not."""
    return original(self, idx_mapping_np)
