"""What each seam of the ledger needs of vLLM, as data: `seams.fit` holds it against the vLLM that is installed.

`overrides` and `wraps` name a function that std replaces, with its parameters: exactly these, or with a trailing `...`
these before any others; alternatives, as vLLM's versions have them, stand on both sides of a `|`. `calls` names a
function that std calls, with what it passes: `x` by position, `x=` by name. `reads` names the attributes of a class
or module that std reads or sets.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Need:
    """where: "module:Class.method", "module:function", "module:Class" or "module:"."""

    how: Literal["overrides", "wraps", "calls", "reads"]
    where: str
    what: str


ENGINE_ARGS = "vllm.engine.arg_utils:EngineArgs"
SCHEDULER = "vllm.v1.core.sched.scheduler:Scheduler"
OUTPUT = "vllm.v1.core.sched.output:"
EXECUTOR = "vllm.v1.executor:Executor"
RUNNER = "vllm.v1.worker.gpu.model_runner:"
TARGET = "vllm.v1.worker.gpu.spec_decode.target_dependent_ar.speculator:TargetDependentARSpeculator"
GRAPHS = "vllm.v1.worker.gpu.spec_decode.target_dependent_ar.cudagraph_utils:SpeculatorCudaGraphManager"
MANAGER = "vllm.v1.worker.gpu.cudagraph_utils:ModelCudaGraphManager"
REJECTION = "vllm.v1.worker.gpu.spec_decode.rejection_sampler:"
LOGGERS = "vllm.v1.metrics.loggers:"
BACKEND = "vllm.v1.attention.backend:"

CONTRACT: dict[str, tuple[Need, ...]] = {
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
        Need("wraps", "vllm.v1.worker.gpu.spec_decode:init_speculator", "vllm_config, device, ..."),
        Need("reads", RUNNER, "init_speculator"),
    ),
    "async scheduling": (Need("reads", "vllm.config.vllm:", "NgramGPUTypes"),),
    "token budget": (Need("wraps", "vllm.config:VllmConfig._set_max_num_scheduled_tokens", "self"),),
    "memory": (
        Need("wraps", f"{EXECUTOR}.determine_available_memory", "self"),
        Need("calls", f"{EXECUTOR}.get_kv_cache_specs", "self"),
        Need("calls", "vllm.utils.torch_utils:kv_cache_dtype_str_to_dtype", "kv_cache_dtype, model_config"),
    ),
    "draft length": (
        Need("overrides", f"{SCHEDULER}.add_request", "self, request"),
        Need("overrides", f"{SCHEDULER}._free_request", "self, request, delay_free_blocks"),
        Need("overrides", f"{SCHEDULER}.schedule", "self, throttle_prefills"),
        Need("overrides", f"{SCHEDULER}._update_after_schedule", "self, scheduler_output"),
        Need("overrides", f"{SCHEDULER}.update_draft_token_ids", "self, draft_token_ids"),
        Need("overrides", f"{SCHEDULER}.update_from_output", "self, scheduler_output, model_runner_output"),
        Need(
            "overrides", f"{SCHEDULER}.make_spec_decoding_stats",
            "self, spec_decoding_stats, num_draft_tokens, num_accepted_tokens, num_invalid_spec_tokens, request_id",
        ),
        Need(
            "overrides", f"{SCHEDULER}.make_stats",
            "self, spec_decoding_stats, kv_connector_stats, cudagraph_stats, perf_stats, ec_connector_stats",
        ),
        Need("overrides", f"{SCHEDULER}.shutdown", "self"),
        Need(
            "reads", SCHEDULER,
            "running waiting requests vllm_config cache_config max_num_running_reqs max_num_scheduled_tokens "
            "num_spec_tokens num_lookahead_tokens dynamic_sd_lookup",
        ),
        Need("wraps", "vllm.v1.core.sched.async_scheduler:AsyncScheduler._update_after_schedule",
             "self, scheduler_output"),
        Need(
            "reads", "vllm.v1.request:Request",
            "request_id sampling_params num_tokens num_computed_tokens spec_token_ids resumable",
        ),
        Need(
            "reads", f"{OUTPUT}SchedulerOutput",
            "num_scheduled_tokens scheduled_spec_decode_tokens scheduled_new_reqs num_spec_tokens_to_schedule",
        ),
    ),
    "sessions": (
        Need("overrides", f"{SCHEDULER}._update_request_with_output", "self, request, new_token_ids, is_stale"),
    ),
    "calibration": (
        Need("wraps", f"{EXECUTOR}.compile_or_warm_up_model", "self"),
        Need("calls", f"{EXECUTOR}.execute_model", "self, scheduler_output, non_block="),
        Need("calls", f"{EXECUTOR}.sample_tokens", "self, grammar_output, non_block="),
        Need("calls", f"{OUTPUT}SchedulerOutput.make_empty", ""),
        Need("calls", f"{OUTPUT}CachedRequestData.make_empty", ""),
        Need(
            "reads", f"{OUTPUT}SchedulerOutput",
            "scheduled_cached_reqs total_num_scheduled_tokens finished_req_ids",
        ),
        Need("reads", f"{OUTPUT}CachedRequestData", "req_ids new_block_ids num_computed_tokens num_output_tokens"),
        Need(
            "calls", f"{OUTPUT}NewRequestData",
            "req_id=, prompt_token_ids=, mm_features=, sampling_params=, pooling_params=, block_ids=, "
            "num_computed_tokens=, lora_request=, prefill_token_ids=",
        ),
        Need("reads", "vllm.envs:", "VLLM_CACHE_ROOT"),
    ),
    "requests": (
        Need("wraps", "vllm.v1.engine.input_processor:InputProcessor._validate_params", "self, params, ..."),
        Need("wraps", "vllm.sampling_params:SamplingParams._validate_spec_decode", "self, speculative_config, ..."),
        Need("reads", "vllm.sampling_params:SamplingParams", "extra_args"),
        Need("reads", "vllm.exceptions:", "VLLMValidationError"),
    ),
    "stats": (
        Need("wraps", f"{LOGGERS}StatLoggerManager.__init__", "self, vllm_config, ..."),
        Need("reads", f"{LOGGERS}StatLoggerManager", "stat_loggers engine_indexes"),
        Need("reads", LOGGERS, "AggregateStatLoggerBase LoggingStatLogger AggregatedLoggingStatLogger"),
        Need(
            "overrides", f"{LOGGERS}AggregateStatLoggerBase.record",
            "self, scheduler_stats, iteration_stats, mm_cache_stats, engine_idx",
        ),
        Need("overrides", f"{LOGGERS}AggregateStatLoggerBase.log", "self"),
        Need("overrides", f"{LOGGERS}AggregateStatLoggerBase.log_engine_initialized", "self"),
        Need("reads", "vllm.v1.metrics.stats:", "SchedulerStats"),
        Need("calls", "vllm.v1.engine.core_client:EngineCoreOutputs", "scheduler_stats="),
    ),
    "queries": (
        Need(
            "wraps", f"{BACKEND}AttentionImpl.forward",
            "self, layer, query, key, value, kv_cache, attn_metadata, ...",
        ),
        Need(
            "reads", "vllm.model_executor.layers.attention:Attention",
            "impl num_heads num_kv_heads head_size get_kv_cache_spec",
        ),
        Need("calls", "vllm.config:get_layers_from_vllm_config", "vllm_config, layer_type"),
        Need("calls", "vllm.model_executor.models.interfaces:requires_raw_input_tokens", "model"),
    ),
    "table per layer": (
        Need(
            "reads", "vllm.v1.attention.backends.flash_attn:FlashAttentionMetadata",
            "block_table max_seq_len max_query_len max_num_splits query_start_loc seq_lens",
        ),
        Need(
            "reads", "vllm.v1.attention.backends.triton_attn:TritonAttentionMetadata",
            "block_table max_seq_len max_query_len query_start_loc seq_lens",
        ),
    ),
    "windowed layers": (
        Need("wraps", f"{EXECUTOR}.initialize_from_config", "self, kv_cache_configs"),
        Need(
            "calls", "vllm.v1.worker.gpu.attn_utils:init_attn_backend",
            "kv_cache_config, vllm_config, device, active_layer_names",
        ),
        Need("reads", "vllm.v1.kv_cache_interface:FullAttentionSpec", "block_size sliding_window attention_chunk_size"),
        Need("reads", "vllm.v1.kv_cache_interface:SlidingWindowSpec", "block_size sliding_window"),
        Need("reads", "vllm.v1.kv_cache_interface:KVCacheConfig", "kv_cache_groups num_blocks kv_cache_tensors"),
        Need("reads", "vllm.v1.kv_cache_interface:KVCacheGroupSpec", "layer_names kv_cache_spec"),
        Need("reads", "vllm.config:SchedulerConfig", "disable_hybrid_kv_cache_manager"),
        Need("reads", "vllm.config:CacheConfig", "sliding_window"),
    ),
    "plan": (
        Need(
            "reads", f"{BACKEND}AttentionMetadataBuilder",
            "supports_draft_decode_metadata_update update_draft_decode_metadata",
        ),
        Need("calls", f"{BACKEND}AttentionMetadataBuilder.build", "self, common_prefix_len, common_attn_metadata"),
    ),
    "verify graphs": (
        Need("wraps", f"{MANAGER}.__init__", "self, vllm_config, device, cudagraph_mode, decode_query_len, ..."),
        Need(
            "wraps", f"{MANAGER}.capture",
            "self, model, model_state, input_buffers, intermediate_tensors, block_tables, attn_groups, ...",
        ),
        Need("wraps", f"{RUNNER}GPUModelRunner.prepare_inputs",
             "self, scheduler_output, batch_req_state, batch_desc, num_active_loras"),
        Need(
            "reads", MANAGER,
            "vllm_config compilation_config cudagraph_mode decode_query_len max_num_reqs lora_capture_cases "
            "ubatch_runner _capture_descs _candidates",
        ),
        Need(
            "calls", "vllm.v1.worker.gpu.cudagraph_utils:BatchExecutionDescriptor",
            "cg_mode=, num_tokens=, num_reqs=, uniform_token_count=, max_query_len=, num_active_loras=",
        ),
        Need("reads", "vllm.v1.worker.gpu.input_batch:InputBatch", "max_query_len"),
        Need("reads", "vllm.config.compilation:CompilationConfig",
             "cudagraph_capture_sizes max_cudagraph_capture_size cudagraph_mode"),
        Need("reads", "vllm.config.compilation:CUDAGraphMode", "PIECEWISE separate_routine decode_mode"),
        Need(
            "calls", "vllm.v1.worker.gpu.attn_utils:get_varlen_cudagraph_unsupported_backend",
            "attn_groups, vllm_config, max_query_len",
        ),
        Need("reads", "vllm.v1.worker.utils:AttentionGroup", "metadata_builders"),
    ),
    "draft graphs": (
        Need("overrides", f"{TARGET}.__init__", "self, vllm_config, device"),
        Need("overrides", f"{TARGET}.load_model", "self, target_model"),
        Need("overrides", f"{TARGET}.load_draft_model", "self, target_model, target_attn_layer_names"),
        Need(
            "overrides", f"{TARGET}.set_attn",
            "self, model_state, kv_cache_config, block_tables, target_input_buffers, target_attn_groups",
        ),
        Need("overrides", f"{TARGET}.init_cudagraph_manager", "self, cudagraph_mode"),
        Need("overrides", f"{TARGET}.capture", "self"),
        Need("overrides", f"{TARGET}._configure_decode_metadata_update", "self"),
        Need(
            "overrides", f"{TARGET}.propose",
            "self, input_batch, attn_metadata, slot_mappings, last_hidden_states, aux_hidden_states, num_sampled, "
            "num_rejected, last_sampled, next_prefill_tokens, temperature, seeds, dp_sync_state, dummy_run, "
            "skip_attn_for_dummy_run, mm_inputs, is_profile, num_speculative_tokens",
        ),
        Need(
            "overrides", f"{TARGET}._run_model",
            "self, num_tokens, attn_metadata, slot_mappings, num_tokens_across_dp, cudagraph_runtime_mode, mm_inputs",
        ),
        Need(
            "overrides", f"{TARGET}.sample_draft",
            "self, hidden_states, sample_src_positions, idx_mapping, temperature, seeds, draft_step, draft_logits, "
            "spec_step_idx | "
            "self, hidden_states, sample_src_positions, idx_mapping, temperature, seeds, draft_step, draft_logits, "
            "spec_step_idx, num_steps",
        ),
        Need("calls", f"{TARGET}._generate_draft", "self, num_reqs, num_tokens_padded, attn_metadata, slot_mappings, "
             "num_tokens_across_dp, cudagraph_runtime_mode, num_speculative_steps"),
        Need("calls", f"{TARGET}._copy_request_inputs", "self, num_reqs, idx_mapping, temperature, seeds, dummy_run="),
        Need("calls", f"{TARGET}._build_uniform_batch_dp_sync", "self, target_dp_sync_state, num_reqs"),
        Need(
            "calls", f"{TARGET}._build_uniform_attn_metadata",
            "self, batch_desc, num_reqs, num_query_per_req, seq_lens_cpu_upper_bound, step=",
        ),
        Need("calls", f"{TARGET}._update_draft_decode_metadata", "self, attn_metadata, num_reqs"),
        Need(
            "reads", TARGET,
            "model block_tables input_buffers attn_groups kv_cache_config model_state idx_mapping draft_logits "
            "current_draft_step sample_src_positions draft_max_seq_len max_num_reqs max_num_tokens max_model_len "
            "hidden_size dtype num_speculative_steps speculative_config dp_size dp_rank supports_mm_inputs "
            "draft_attn_layer_names",
        ),
        Need(
            "calls", "vllm.v1.worker.gpu.spec_decode.target_dependent_ar.speculator:prepare_decode_inputs",
            "draft_tokens, target_seq_lens, num_rejected, input_buffers, sample_src_positions, max_model_len, "
            "max_num_reqs",
        ),
        Need("calls", GRAPHS, "vllm_config, device, cudagraph_mode, decode_query_len"),
        Need(
            "calls", f"{GRAPHS}.capture",
            "self, forward_fn, model_state, input_buffers, block_tables, attn_groups, kv_cache_config, "
            "progress_bar_desc=",
        ),
        Need("calls", f"{GRAPHS}.run_fullgraph", "self, desc"),
        Need(
            "calls", "vllm.v1.worker.gpu.dp_utils:dispatch_cg_and_sync_dp",
            "cudagraph_manager, num_reqs, num_tokens, uniform_token_count, dp_size, dp_rank, need_eager=, "
            "dp_sync_state=",
        ),
        Need("calls", "vllm.v1.worker.gpu.attn_utils:build_slot_mappings_by_layer", "slot_mappings, kv_cache_config"),
        Need(
            "calls", "vllm.forward_context:set_forward_context",
            "attn_metadata, vllm_config, num_tokens=, num_tokens_across_dp=, cudagraph_runtime_mode=, "
            "batch_descriptor=, slot_mapping=",
        ),
        Need("calls", "vllm.forward_context:BatchDescriptor", "num_tokens"),
        Need("reads", "vllm.config.compilation:CUDAGraphMode", "NONE FULL FULL_DECODE_ONLY decode_mode"),
        Need(
            "reads", "vllm.v1.worker.gpu.input_batch:InputBatch",
            "num_reqs idx_mapping idx_mapping_np num_scheduled_tokens seq_lens seq_lens_cpu_upper_bound "
            "query_start_loc is_prefilling_np prefill_len_np num_computed_tokens_np num_draft_tokens "
            "cu_num_logits_np",
        ),
        Need(
            "calls", "vllm.v1.worker.gpu.block_table:BlockTables.compute_slot_mappings",
            "self, idx_mapping, query_start_loc, positions, num_tokens_padded",
        ),
        Need("reads", "vllm.v1.worker.gpu.block_table:BlockTables", "input_block_tables slot_mappings"),
        Need(
            "reads", "vllm.v1.worker.utils:AttentionGroup",
            "backend layer_names kv_cache_spec kv_cache_group_id kernel_block_size get_metadata_builder "
            "map_to_kernel_block_table supports_draft_decode_metadata_update",
        ),
        Need("reads", "vllm.v1.worker.gpu.model_states.default:DefaultModelState", "rope_state"),
    ),
    "key layout": (
        Need(
            "reads", "vllm.model_executor.layers.attention:Attention",
            "kv_cache kv_cache_dtype query_quant",
        ),
        Need(
            "calls", "vllm.v1.attention.backends.flash_attn:FlashAttentionImpl.do_kv_cache_update",
            "self, layer, key, value, kv_cache, slot_mapping",
        ),
    ),
    "copies": (Need("calls", "vllm.utils.torch_utils:async_tensor_h2d", "data, device"),),
    "adapters": (
        Need("wraps", f"{RUNNER}GPUModelRunner.sample", "self, hidden_states, input_batch, ..."),
        Need("wraps", "vllm.lora.model_manager:LoRAModelManager.set_adapter_mapping", "self, mapping"),
        Need("calls", "vllm.lora.layers:LoRAMapping", "index_mapping, prompt_mapping, is_prefill="),
        Need("reads", "vllm.lora.layers:LoRAMappingType", "LANGUAGE"),
    ),
    "connector": (Need("reads", "vllm.distributed.kv_transfer.kv_transfer_state:", "_KV_CONNECTOR_AGENT"),),
    "faults": (
        Need("wraps", f"{RUNNER}GPUModelRunner.sample_tokens", "self, ..."),
        Need("calls", "vllm.distributed.parallel_state:get_tp_group", ""),
    ),
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
    "lab": (
        Need("calls", "vllm.entrypoints.llm:LLM._preprocess_chat", "self, conversations"),
        Need("calls", "vllm.entrypoints.llm:LLM._preprocess_cmpl", "self, prompts"),
        Need("calls", "vllm.entrypoints.llm:LLM._render_and_run_requests", "self, prompts, params, output_type, "
             "use_tqdm="),
        Need("overrides", f"{TARGET}.observe_verification", "self, idx_mapping, num_sampled, num_rejected"),
        Need("wraps", "vllm.v1.core.kv_cache_coordinator:KVCacheCoordinator.find_longest_cache_hit",
             "self, block_hashes, max_cache_hit_length, ..."),
        Need("reads", GRAPHS, "graphs _graphs_captured"),
    ),
    "bench": (
        Need("calls", "vllm.benchmarks.serve:get_first_model_from_server", "base_url"),
        Need(
            "calls", "vllm.benchmarks.serve:benchmark",
            "task_type=, endpoint_type=, api_url=, base_url=, model_id=, model_name=, tokenizer=, input_requests=, "
            "logprobs=, request_rate=, burstiness=, disable_tqdm=, num_warmups=, profile=, "
            "selected_percentile_metrics=, selected_percentiles=, ignore_eos=, goodput_config_dict=, "
            "max_concurrency=, lora_modules=, extra_headers=, extra_body=",
        ),
        Need("calls", "vllm.benchmarks.sweep.server:ServerProcess", "server_cmd, after_bench_cmd, show_stdout="),
        Need("reads", "vllm.benchmarks.sweep.server:ServerProcess", "wait_until_ready stop _server_process"),
        Need(
            "calls", "vllm.benchmarks.datasets:SampleRequest",
            "prompt=, prompt_len=, expected_output_len=, request_id=, chat_messages=",
        ),
        Need("calls", "vllm.tokenizers:get_tokenizer", "tokenizer_name"),
        Need("calls", "vllm.utils.network_utils:get_open_port", ""),
    ),
}  # fmt: skip
TOOLS = ("lab", "bench")  # seams of commands; a server does without them
