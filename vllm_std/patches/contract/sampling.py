"""What sampling, adapters and faults need of vLLM; `contract.Need` says how to read it."""

from vllm_std.patches.contract.need import RUNNER, TARGET, Need

REJECTION = "vllm.v1.worker.gpu.spec_decode.rejection_sampler:"

NEEDS: dict[str, tuple[Need, ...]] = {
    "truncation": (
        Need("wraps", f"{RUNNER}GPUModelRunner.load_model", "self, ..."),
        Need("reads", f"{RUNNER}GPUModelRunner", "sampler speculator device"),
        Need("overrides", f"{TARGET}.compute_draft_logits", "self, hidden_states, spec_step_idx"),
        Need("reads", TARGET, "temperature"),
        Need("reads", "vllm.v1.worker.gpu.sample.states:SamplingStates", "top_k top_p min_p temperature vocab_size"),
        Need("calls", "vllm.v1.sample.ops.topk_topp_sampler:apply_top_k_top_p", "logits, k, p"),
        Need("calls", "vllm.v1.worker.gpu.sample.gumbel:apply_temperature",
             "logits, expanded_idx_mapping, temperature"),
        Need("calls", "vllm.v1.worker.gpu.sample.min_p:apply_min_p", "logits, expanded_idx_mapping, min_p"),
    ),
    "named logprobs": (
        Need(
            "wraps", f"{REJECTION}RejectionSampler._verify",
            "self, logits, draft_logits, draft_sampled, pos, cu_num_logits, idx_mapping, idx_mapping_np, "
            "expanded_idx_mapping, ...",
        ),
        Need(
            "wraps", f"{REJECTION}RejectionSampler._get_logprobs_tensors",
            "self, sampled, num_sampled, logits, cu_num_logits, cu_num_logits_np, max_num_logprobs",
        ),
        Need("reads", REJECTION, "_flatten_sampled_kernel"),
        Need("wraps", "vllm.v1.worker.gpu.sample.sampler:Sampler.get_logprobs_dims", "self, idx_mapping_np, ..."),
        Need("reads", "vllm.v1.worker.gpu.sample.sampler:Sampler", "logprob_token_ids_state logprobs_mode"),
        Need(
            "calls", "vllm.v1.worker.gpu.sample.logprob:compute_topk_scores",
            "logits, num_logprobs, sampled_token_ids, cu_num_logits, logprob_token_ids_state=, "
            "expanded_idx_mapping=, max_per_req_token_ids=, logits_mode=",
        ),
        Need("calls", "vllm.v1.worker.gpu.sample.logprob:LogprobTokenIdsState.max_num_token_ids",
             "self, idx_mapping_np"),
    ),
    "adapters": (
        Need("wraps", f"{RUNNER}GPUModelRunner.sample", "self, hidden_states, input_batch, ..."),
        Need("wraps", "vllm.lora.model_manager:LoRAModelManager.set_adapter_mapping", "self, mapping"),
        Need("calls", "vllm.lora.layers:LoRAMapping", "index_mapping, prompt_mapping, is_prefill="),
        Need("reads", "vllm.lora.layers:LoRAMappingType", "LANGUAGE"),
    ),
    "rounds": (
        Need("wraps", f"{RUNNER}GPUModelRunner.execute_model", "self, scheduler_output, ..."),
        Need("wraps", f"{RUNNER}GPUModelRunner.sample_tokens", "self, ..."),
    ),
    "faults": (
        Need("calls", "vllm.distributed.parallel_state:get_tp_group", ""),
    ),
}  # fmt: skip
