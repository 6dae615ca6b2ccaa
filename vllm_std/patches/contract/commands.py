"""What commands of vllm-std need of vLLM; a server does without it; `contract.Need` says how to read it."""

from vllm_std.patches.contract.need import GRAPHS, TARGET, Need

NEEDS: dict[str, tuple[Need, ...]] = {
    "offline": (
        Need("calls", "vllm.entrypoints.llm:LLM._preprocess_chat", "self, conversations"),
        Need("calls", "vllm.entrypoints.llm:LLM._preprocess_cmpl", "self, prompts"),
        Need("calls", "vllm.entrypoints.llm:LLM._render_and_run_requests", "self, prompts, params, output_type, "
             "use_tqdm="),
        Need("reads", "vllm.entrypoints.llm:LLM", "llm_engine request_counter"),
        Need("reads", "vllm.v1.metrics.stats:RequestStateStats", "queued_ts first_token_ts"),
    ),
    "lab": (
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
