"""What selection and masked attention need of vLLM; `contract.Need` says how to read it."""

from vllm_std.patches.contract.need import BACKEND, EXECUTOR, Need

NEEDS: dict[str, tuple[Need, ...]] = {
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
    "connector": (Need("reads", "vllm.distributed.kv_transfer.kv_transfer_state:", "_KV_CONNECTOR_AGENT"),),
}  # fmt: skip
