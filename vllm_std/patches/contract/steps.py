"""What the scheduler, the calibration and the statistics need of vLLM; `contract.Need` says how to read it."""

from vllm_std.patches.contract.need import EXECUTOR, Need

SCHEDULER = "vllm.v1.core.sched.scheduler:Scheduler"
OUTPUT = "vllm.v1.core.sched.output:"
LOGGERS = "vllm.v1.metrics.loggers:"

NEEDS: dict[str, tuple[Need, ...]] = {
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
}  # fmt: skip
