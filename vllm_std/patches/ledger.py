"""The seam ledger: what of vLLM's inside vllm-std replaces or reads, and nothing else does.

Each entry says why vLLM's public surface is not enough, where upstream discusses it, and when the entry can go.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Seam:
    name: str
    replaces: str
    why: str
    upstream: str
    remove_when: str


LEDGER = (
    Seam(
        "cli",
        "vllm.engine.arg_utils.EngineArgs.add_cli_args",
        "choices of --spec-method come from a closed Literal, and --speculative-method is not a flag of vLLM",
        "vLLM RFC #36219",
        "out-of-tree methods can register a name",
    ),
    Seam(
        "config",
        "vllm.engine.arg_utils.EngineArgs.create_speculative_config",
        "builds SpeculativeConfig by name; a method with options of its own needs a subclass",
        "vLLM RFC #36979",
        "vLLM asks a registry for the config class of a method",
    ),
    Seam(
        "refusals",
        "vllm.engine.arg_utils.EngineArgs.create_engine_config",
        "only the finished VllmConfig shows runner, backend, parallelism and cache dtype together",
        "vLLM RFC #51212",
        "SpeculativeConfig gets a hook that sees the whole VllmConfig",
    ),
    Seam(
        "backend",
        "AttentionConfig.backend, where nobody has set it and the platform's first choice is none of std's",
        "on some GPUs vLLM's first choice is a backend that std does not draft on, and a method has no say in it",
        "none",
        "a speculative method can name the attention backends it works with",
    ),
    Seam(
        "speculator",
        "vllm.v1.worker.gpu.spec_decode.init_speculator (and its name in gpu.model_runner)",
        "a closed if/elif on the method name; `custom_class` exists for Model Runner V1 only",
        "vLLM RFC #47351",
        "Model Runner V2 builds out-of-tree speculators",
    ),
    Seam(
        "async scheduling",
        "the Literal vllm.config.vllm.NgramGPUTypes (vLLM 0.32; on 0.33 it has no effect)",
        "0.32 switches async scheduling off for every method it does not know by name, on Model Runner V2 too",
        "vLLM RFC #47351",
        "support for vLLM 0.32 ends",
    ),
    Seam(
        "memory",
        "vllm.v1.executor.Executor.determine_available_memory",
        "key summaries grow with the number of KV blocks, which vLLM derives from all memory that is free; and vLLM "
        "profiles its memory before there is a KV cache, which the tables and the workspace of selection belong to",
        "none",
        "a speculator can ask for memory by the KV block",
    ),
    Seam(
        "draft length",
        "--scheduler-cls (a subclass of vLLM's Scheduler or AsyncScheduler); SchedulerOutput.skip_drafts (read, where "
        "there is one)",
        "vLLM's own choice of draft length sees the batch size alone, and reserves slots for the longest",
        "vLLM #32374",
        "a method can choose the draft length of a step from batch, context and acceptance",
    ),
    Seam(
        "sessions",
        "Scheduler._update_request_with_output (num_computed_tokens of a resumable request that stops)",
        "0.32 counts drafts as computed that were accepted beyond a stop, so that a session's next turn reads them",
        "none",
        "support for vLLM 0.32 ends",
    ),
    Seam(
        "token budget",
        "vllm.config.VllmConfig._set_max_num_scheduled_tokens",
        "warns of every budget below 8,192 tokens with drafts, for methods that reserve slots of it; std does not",
        "none",
        "vLLM warns where slots are reserved alone",
    ),
    Seam(
        "truncation",
        "GPUModelRunner.load_model (hands the sampler's states on); DraftModelSpeculator.compute_draft_logits; "
        "vLLM's kernels for temperature, min-p, top-k and top-p (called)",
        "vLLM draws drafts by temperature alone, and loses those that a request's top-k, top-p or min-p leave out",
        "none",
        "vLLM's speculators draft with them",
    ),
    Seam(
        "named logprobs",
        "vllm.v1.worker.gpu.spec_decode.rejection_sampler.RejectionSampler._verify and _get_logprobs_tensors, "
        "vllm.v1.worker.gpu.sample.sampler.Sampler.get_logprobs_dims",
        "a pass that verifies drafts leaves out SamplingParams.logprob_token_ids, also for requests without drafts",
        "none",
        "vLLM's RejectionSampler returns them",
    ),
    Seam(
        "calibration",
        "vllm.v1.executor.Executor.compile_or_warm_up_model (timed steps through Executor.execute_model after it)",
        "no hook lets a plugin run steps between warm-up and the first request",
        "none",
        "vLLM offers such a hook, or measures its steps itself",
    ),
    Seam(
        "requests",
        "vllm.v1.engine.input_processor.InputProcessor._validate_params; SamplingParams._validate_spec_decode (passed "
        "over)",
        "vllm_xargs reaches the scheduler unchecked, where an error would end the engine; and requests with min_p or "
        "logit_bias are refused with any speculative method, though Model Runner V2 verifies with both",
        "none",
        "a plugin can check vllm_xargs before a request is queued; vLLM refuses them on Model Runner V1 alone",
    ),
    Seam(
        "stats",
        "vllm.v1.metrics.stats.SchedulerStats (a field `std`), StatLoggerManager.__init__ (a logger after vLLM's own), "
        "and, after an engine without std in one process, vllm.v1.engine.core_client.EngineCoreOutputs (a subclass)",
        "nothing carries statistics of others to the front end, and a stat logger plugin turns statistics on for all",
        "none",
        "SchedulerStats carries what a scheduler adds, and a method can bring a stat logger",
    ),
    Seam(
        "queries",
        "Attention.impl.forward of each target layer (reads the query, then calls it unchanged)",
        "no hook gives a speculator the target's queries; a module hook is lost in torch.compile",
        "vLLM RFC #47351",
        "vLLM hands queries to speculators as it hands auxiliary hidden states",
    ),
    Seam(
        "table per layer",
        "the attention metadata dict of a draft step (copied, with another block table for each layer)",
        "builders make one metadata for all layers of a KV cache group",
        "vLLM RFC #47351",
        "metadata builders accept a block table per layer",
    ),
    Seam(
        "windowed layers",
        "vllm.v1.worker.gpu.attn_utils.init_attn_backend (called, for groups of full and of windowed layers); "
        "the lengths in the attention metadata of a draft step (others for windowed layers); Executor."
        "initialize_from_config (the KV cache groups are noted, for the timed steps of calibration)",
        "a speculator builds one metadata for all layers of a KV cache group, of one length for all groups",
        "none",
        "metadata builders accept lengths per layer",
    ),
    Seam(
        "plan",
        "supports_draft_decode_metadata_update and update_draft_decode_metadata of std's own CPU_ATTN builders (set), "
        "scheduler_metadata of the layers of a draft step (shared)",
        "the CPU backend plans attention when metadata is built, and building it for each draft step took as long as a "
        "fifth of that step",
        "none",
        "CPUAttentionMetadataBuilder updates draft metadata in place",
    ),
    Seam(
        "verify graphs",
        "ModelCudaGraphManager.__init__ and .capture (its batches: _capture_descs, _candidates); GPUModelRunner."
        "prepare_inputs (InputBatch.max_query_len); AttentionMetadataBuilder.max_cudagraph_size of FlashAttention",
        "vLLM captures each draft length at each capture size, no passes of other lengths in one batch, and none above "
        "512 tokens",
        "vLLM #32374",
        "graphs of mixed query lengths, as of adaptive verification, can be had by every method",
    ),
    Seam(
        "draft graphs",
        "SpeculatorCudaGraphManager, and what a step needs of TargetDependentARSpeculator's multi-step decode",
        "vLLM fuses all steps of one draft length into a graph, or rebuilds metadata on the host for each step; a "
        "graph of one step serves every draft length",
        "vLLM #32374",
        "vLLM captures draft steps one by one with metadata updated in place",
    ),
    Seam(
        "key layout",
        "Attention.impl.do_kv_cache_update on the null block (a pattern is written and read back once); with an fp8 "
        "cache also Attention._k_scale_float, _q_scale_float and query_quant, which are read",
        "the interior of a KV block is the backend's secret: the CPU kernels pack it by instruction set, fp8 is bytes",
        "none",
        "backends describe the layout of a block",
    ),
    Seam(
        "copies",
        "vllm.utils.torch_utils.async_tensor_h2d (called)",
        "what the host decides in a round must reach the device without a wait, as the runner's own inputs do",
        "none",
        "vLLM makes its copy a public utility",
    ),
    Seam(
        "adapters",
        "LoRAModelManager.set_adapter_mapping of the target (seen, and called for draft steps); GPUModelRunner.sample "
        "(calls it for each verified token before)",
        "nothing tells a speculator the adapters of a batch; and Model Runner V2 maps them to one logit of each "
        "request, where one that verifies drafts has more (Model Runner V1 had it mended in #21068)",
        "vLLM #21068",
        "InputBatch shows the adapters of its requests, and Model Runner V2 maps them to all logits",
    ),
    Seam(
        "connector",
        "vllm.distributed.kv_transfer.kv_transfer_state._KV_CONNECTOR_AGENT (None while a draft step runs)",
        "attention layers call the KV connector after every forward, for K/V that are not there to stay too",
        "none",
        "a forward context can say that a pass is no business of the connector's",
    ),
    Seam(
        "faults",
        "GPUModelRunner.sample_tokens (a count `std_faults` goes with its ModelRunnerOutput); get_tp_group().cpu_group "
        "(a barrier, after a fault only)",
        "a speculator has no way to tell the scheduler anything but tokens",
        "none",
        "ModelRunnerOutput carries what a speculator adds",
    ),
    Seam(
        "lab",
        "five parts of an in-process engine, listed in seams.lab; `vllm-std acceptance` and scripts that measure alone "
        "go there",
        "vLLM counts drafts for all requests together, and fixes draft length and drafter at start-up",
        "none",
        "RequestOutput tells the drafts of its request, and a speculator's options can change",
    ),
    Seam(
        "bench",
        "vllm.benchmarks.serve.benchmark and get_first_model_from_server, vllm.benchmarks.sweep.server.ServerProcess "
        "(called); `vllm-std bench` and `demo` alone go there",
        "`vllm bench serve` has no dataset of a user's own videos, and writes its results to files of its own",
        "none",
        "vllm bench serve takes chat messages from a file",
    ),
)
