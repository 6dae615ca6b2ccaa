"""What the command line, the options and the start of an engine need of vLLM; `contract.Need` says how to read it."""

from vllm_std.patches.contract.need import BACKEND, EXECUTOR, RUNNER, Need

ENGINE_ARGS = "vllm.engine.arg_utils:EngineArgs"

NEEDS: dict[str, tuple[Need, ...]] = {
    "cli": (Need("wraps", f"{ENGINE_ARGS}.add_cli_args", "parser"),),
    "config": (
        Need("wraps", f"{ENGINE_ARGS}.create_speculative_config", "self, target_model_config, target_parallel_config"),
        Need(
            "reads", ENGINE_ARGS,
            "speculative_config spec_method spec_model spec_tokens compilation_config cudagraph_capture_sizes "
            "max_cudagraph_capture_size",
        ),
        Need("overrides", "vllm.config:SpeculativeConfig.__post_init__", "self"),
        Need("overrides", "vllm.config:SpeculativeConfig.uses_draft_model", "self"),
        Need("overrides", "vllm.config:SpeculativeConfig.use_ngram", "self"),
        Need(
            "reads", "vllm.config:SpeculativeConfig",
            "method num_speculative_tokens draft_sample_method rejection_sample_method synthetic_acceptance_rates "
            "synthetic_acceptance_length prompt_lookup_max prompt_lookup_min target_model_config "
            "target_parallel_config draft_model_config draft_parallel_config "
            "max_num_new_slots_for_drafting",
        ),
        Need("reads", "vllm.config.speculative:", "DraftSampleMethod RejectionSampleMethod"),
        Need("reads", "vllm.config.utils:", "config"),
    ),
    "refusals": (
        Need("wraps", f"{ENGINE_ARGS}.create_engine_config", "self, ..."),
        Need(
            "reads", "vllm.config:VllmConfig",
            "speculative_config model_config cache_config parallel_config scheduler_config kv_transfer_config "
            "attention_config use_v2_model_runner",
        ),
        Need(
            "reads", "vllm.config:ModelConfig",
            "model runner_type is_encoder_decoder use_mla is_attention_free is_hybrid is_moe hf_text_config "
            "max_model_len get_num_attention_heads uses_mrope",
        ),
        Need(
            "reads", "vllm.config:ParallelConfig",
            "pipeline_parallel_size tensor_parallel_size data_parallel_size decode_context_parallel_size "
            "prefill_context_parallel_size enable_eplb",
        ),
        Need("reads", "vllm.config:CacheConfig", "cache_dtype block_size num_gpu_blocks"),
        Need(
            "reads", "vllm.config:SchedulerConfig",
            "scheduler_cls async_scheduling max_num_seqs max_num_batched_tokens max_num_scheduled_tokens",
        ),
        Need("reads", "vllm.config:AttentionConfig", "backend"),
    ),
    "backend": (
        Need("reads", "vllm.v1.attention.backends.registry:", "AttentionBackendEnum"),
        Need("calls", "vllm.v1.attention.selector:get_attn_backend", "head_size, dtype, kv_cache_dtype"),
        Need("calls", f"{BACKEND}AttentionBackend.get_builder_cls", ""),
        Need("calls", f"{BACKEND}AttentionMetadataBuilder.get_cudagraph_support", "vllm_config, kv_cache_spec"),
        Need("reads", f"{BACKEND}AttentionCGSupport", "ALWAYS"),
    ),
    "speculator": (
        Need("wraps", "vllm.v1.worker.gpu.spec_decode:init_speculator", "vllm_config, device, req_states, ..."),
        Need("reads", RUNNER, "init_speculator"),
    ),
    "async scheduling": (Need("reads", "vllm.config.vllm:", "NgramGPUTypes"),),
    "token budget": (Need("wraps", "vllm.config:VllmConfig._set_max_num_scheduled_tokens", "self"),),
    "memory": (
        Need("wraps", f"{EXECUTOR}.determine_available_memory", "self"),
        Need("calls", f"{EXECUTOR}.get_kv_cache_specs", "self"),
        Need("calls", "vllm.utils.torch_utils:kv_cache_dtype_str_to_dtype", "kv_cache_dtype, model_config"),
    ),
    "requests": (
        Need("wraps", "vllm.v1.engine.input_processor:InputProcessor._validate_params", "self, params, ..."),
        Need("wraps", "vllm.sampling_params:SamplingParams._validate_spec_decode", "self, speculative_config, ..."),
        Need("reads", "vllm.sampling_params:SamplingParams", "extra_args"),
        Need("reads", "vllm.exceptions:", "VLLMValidationError"),
    ),
}  # fmt: skip
