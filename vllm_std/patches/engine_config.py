"""What std changes in the configuration of an engine, once all of it is known."""

from vllm_std import refusals
from vllm_std.patches import probe
from vllm_std.patches.scheduling import schedule_drafts
from vllm_std.patches.wrapping import Patch

GRAPH_SIZES = ("cudagraph_capture_sizes", "max_cudagraph_capture_size")  # options with which users limit CUDA graphs

REFUSALS = Patch(
    name="refusals",
    replaces="vllm.engine.arg_utils.EngineArgs.create_engine_config",
    why="only the finished VllmConfig shows runner, backend, parallelism and cache dtype together",
    upstream="vLLM RFC #51212",
    remove_when="SpeculativeConfig gets a hook that sees the whole VllmConfig",
)
TOKEN_BUDGET = Patch(
    name="token budget",
    replaces="vllm.config.VllmConfig._set_max_num_scheduled_tokens",
    why="warns of every budget below 8,192 tokens with drafts, for methods that reserve slots of it; std does not",
    upstream="none",
    remove_when="vLLM warns where slots are reserved alone",
)


def create_engine_config(original, self, *args, **kwargs):
    """EngineArgs.create_engine_config. Raises ValueError for what std does not support."""
    user_options = (self, self.compilation_config)
    limited = any(getattr(options, name, None) for options in user_options for name in GRAPH_SIZES)
    vllm_config = original(self, *args, **kwargs)  # fills them in
    refusals.refuse_unsupported(vllm_config)
    probe.choose_backend(vllm_config)
    if limited and (most := vllm_config.compilation_config.max_cudagraph_capture_size):
        vllm_config.speculative_config.graph_limit = most
    schedule_drafts(vllm_config)
    return vllm_config


def set_token_budget(original, self) -> None:
    """VllmConfig._set_max_num_scheduled_tokens, without the warning of a budget below 8,192 tokens."""
    if self.scheduler_config.max_num_scheduled_tokens is None:
        self.scheduler_config.max_num_scheduled_tokens = self.scheduler_config.max_num_batched_tokens
