"""The options of std, from the command line and from Python to a StdConfig."""

from typing import Any

from vllm_std.config import StdConfig
from vllm_std.option_values import bare, shown
from vllm_std.patches import fit, requests, stats
from vllm_std.patches.wrapping import Patch

CONFIG = Patch(
    name="config",
    replaces="vllm.engine.arg_utils.EngineArgs.create_speculative_config",
    why="builds SpeculativeConfig by name; a method with options of its own needs a subclass",
    upstream="vLLM RFC #36979",
    remove_when="vLLM asks a registry for the config class of a method",
)


def create_speculative_config(original, self, *args, **kwargs) -> StdConfig:
    """EngineArgs.create_speculative_config. Raises ValueError where this vLLM does not fit, and for wrong options."""
    fit.require()
    flags = {"method": self.spec_method, "model": self.spec_model, "num_speculative_tokens": self.spec_tokens}
    from_flags = {key: value for key, value in flags.items() if value is not None}
    options = _merged({} if self.speculative_config is None else self.speculative_config, from_flags)
    config = StdConfig.from_options(options, *args, **kwargs)
    requests.install()
    stats.install()
    return config


def _merged(*sources: dict) -> dict[str, Any]:
    """All options of several sources by name. Raises ValueError for one that has two values."""
    options: dict[str, Any] = {}
    for source in sources:
        if not isinstance(source, dict):
            raise ValueError(f'--speculative-config={shown(source)} is not a JSON object, such as {{"top_k": 1024}}.')
        for key, value in source.items():
            name = key.replace("-", "_") if isinstance(key, str) else bare(key)
            other = options.setdefault(name, value)
            if type(other) is not type(value) or other != value:
                raise ValueError(
                    f"speculative option {bare(name)} is given twice: {shown(other)} and {shown(value)}; "
                    f"give one of them."
                )
    return options
