"""What draft steps and their CUDA graphs need of vLLM; `contract.Need` says how to read it."""

from vllm_std.patches.contract.need import GRAPHS, RUNNER, TARGET, Need

MANAGER = "vllm.v1.worker.gpu.cudagraph_utils:ModelCudaGraphManager"

NEEDS: dict[str, tuple[Need, ...]] = {
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
        Need("calls", f"{TARGET}._prepare_eplb_forward", "self, num_unpadded_tokens"),
        Need("reads", "vllm.v1.worker.gpu.states:RequestState", "all_token_ids"),
        Need("calls", f"{TARGET}._generate_draft", "self, num_reqs, num_tokens_padded, attn_metadata, slot_mappings, "
             "num_tokens_across_dp, cudagraph_runtime_mode, num_speculative_steps"),
        Need("calls", f"{TARGET}._copy_request_inputs", "self, num_reqs, idx_mapping, temperature, seeds, dummy_run="),
        Need(
            "calls", f"{TARGET}._build_uniform_batch_dp_sync",
            "self, target_dp_sync_state, num_reqs, num_query_per_req",
        ),
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
        Need("reads", "vllm.v1.attention.backends.utils:", "PAD_SLOT_ID"),
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
}  # fmt: skip
