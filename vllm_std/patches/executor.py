"""Between an engine's warm-up and its first request: KV cache groups are noted, and steps are timed."""

from vllm_std.control import calibration
from vllm_std.patches.blocks import groups_of
from vllm_std.patches.wrapping import Patch

CALIBRATION = Patch(
    name="calibration",
    replaces="vllm.v1.executor.Executor.compile_or_warm_up_model (timed steps through Executor.execute_model after it)",
    why="no hook lets a plugin run steps between warm-up and the first request",
    upstream="none",
    remove_when="vLLM offers such a hook, or measures its steps itself",
)


def initialize_from_config(original, self, kv_cache_configs, *args, **kwargs):
    """Executor.initialize_from_config. Timed steps need the KV cache groups, which only the engine knows."""
    self.vllm_config.speculative_config.kv_groups = groups_of(kv_cache_configs[0])
    return original(self, kv_cache_configs, *args, **kwargs)


def compile_or_warm_up_model(original, self) -> None:
    """Executor.compile_or_warm_up_model, and the timed steps after it."""
    original(self)
    if self.vllm_config.speculative_config.adaptive:
        calibration.calibrate(self)
