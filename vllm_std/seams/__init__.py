"""The seams: every place where vllm-std touches the inside of vLLM; `seams.ledger` says why, and until when.

What the draft loop imports from a worker stands in `seams.worker`, what the acceptance lab reads in `seams.lab`.
`install()` is re-entrant and cheap: it wraps functions that fall through to vLLM's own unless the speculative method is
`std`. A seam that is missing makes one sentence at start-up, never a trace in mid-request.
"""

import functools
import os
import sys
from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np

from vllm_std.seams.ledger import LEDGER, Seam

SUPPORTED_VLLM = ("0.32", "0.33")
ANY_VERSION = "VLLM_STD_ANY_VERSION"
__all__ = ["LEDGER", "Seam", "install", "is_std", "require_supported_version", "vllm_version"]


def vllm_version() -> str:
    import vllm

    return vllm.__version__


def require_supported_version() -> None:
    """Raise ValueError, in one sentence, on a vLLM that vllm-std was not tested with."""
    version = vllm_version()
    if version.startswith(tuple(v + "." for v in SUPPORTED_VLLM)) or os.environ.get(ANY_VERSION) == "1":
        return
    raise ValueError(
        f"speculative method 'std' works with vLLM {' and '.join(SUPPORTED_VLLM)}, and this is vLLM {version}: "
        f"install one of those, or set {ANY_VERSION}=1 to go on at your own risk; vLLM without 'std' is not affected."
    )


def install() -> None:
    """Put the wrappers of the ledger in place. Safe to call any number of times, in any vLLM process."""
    from vllm.engine.arg_utils import EngineArgs

    _wrap(EngineArgs, "add_cli_args", _add_cli_args, static=True)
    _wrap(EngineArgs, "create_speculative_config", _create_speculative_config)
    _wrap(EngineArgs, "create_engine_config", _create_engine_config)

    import vllm.config.vllm as config
    import vllm.v1.worker.gpu.spec_decode as spec_decode
    from vllm.v1.executor import Executor

    if "std" not in get_args(config.NgramGPUTypes):
        config.NgramGPUTypes = Literal[*get_args(config.NgramGPUTypes), "std"]

    _wrap(Executor, "determine_available_memory", _determine_available_memory)
    _wrap(Executor, "compile_or_warm_up_model", _compile_or_warm_up_model)
    _wrap(spec_decode, "init_speculator", _init_speculator)
    # The runner imports the function by name, so it may hold the plain one already.
    runner: Any = sys.modules.get("vllm.v1.worker.gpu.model_runner")
    if runner is not None:
        runner.init_speculator = spec_decode.init_speculator


def _wrap(owner: Any, name: str, around: Callable, static: bool = False) -> None:
    """Replace owner.name by a function that calls around(plain, ...)."""
    plain = getattr(owner, name)
    if hasattr(plain, "__vllm_std__"):
        return

    @functools.wraps(plain)
    def wrapper(*args, **kwargs):
        return around(plain, *args, **kwargs)

    wrapper.__vllm_std__ = True  # type: ignore[attr-defined]
    setattr(owner, name, staticmethod(wrapper) if static else wrapper)


def _add_cli_args(plain, parser):
    parser = plain(parser)
    action = parser._option_string_actions.get("--spec-method")
    if action is None or "std" in (action.choices or ()):
        return parser
    if action.choices is not None:
        action.choices = [*action.choices, "std"]
    action.help += "\n\nstd: the target drafts on its own KV cache, through a sparse mask of it (vllm-std)."
    action.option_strings.append("--speculative-method")
    parser._option_string_actions["--speculative-method"] = action
    return parser


def _create_speculative_config(plain, self, *args, **kwargs):
    config = {} if self.speculative_config is None else self.speculative_config
    if "std" not in (self.spec_method, config.get("method") if isinstance(config, dict) else None):
        return plain(self, *args, **kwargs)
    from vllm_std.config import StdConfig

    require_supported_version()
    flags = {"method": self.spec_method, "model": self.spec_model, "num_speculative_tokens": self.spec_tokens}
    given = _named(config, {key: value for key, value in flags.items() if value is not None})
    made = StdConfig.from_options(given, *args, **kwargs)
    _watch_frontend()
    return made


def _named(*sources: dict) -> dict[str, Any]:
    """All options of several sources by name. Raises ValueError for one that says two things."""
    from vllm_std.config import bare, shown

    given: dict[str, Any] = {}
    for source in sources:
        if not isinstance(source, dict):
            raise ValueError(f'--speculative-config={shown(source)} is not a JSON object, such as {{"top_k": 1024}}.')
        for key, value in source.items():
            name = key.replace("-", "_") if isinstance(key, str) else bare(key)
            before = given.setdefault(name, value)
            if type(before) is not type(value) or before != value:
                raise ValueError(
                    f"speculative option {bare(name)} is given twice: {shown(before)} and {shown(value)}; "
                    f"give one of them."
                )
    return given


def _watch_frontend() -> None:
    """What only a front end does: it checks requests, and shows statistics."""
    from vllm_std.seams import requests, stats

    requests.install()
    stats.install()


def _create_engine_config(plain, self, *args, **kwargs):
    vllm_config = plain(self, *args, **kwargs)
    if is_std(vllm_config):
        from vllm_std.config import refuse_unsupported

        refuse_unsupported(vllm_config)
        _schedule_drafts(vllm_config)
    return vllm_config


def _schedule_drafts(vllm_config) -> None:
    """Have vLLM build std's scheduler, and capture its dense pass for every draft length."""
    scheduler, options = vllm_config.scheduler_config, vllm_config.speculative_config
    name = "AsyncStdScheduler" if scheduler.async_scheduling else "StdScheduler"
    scheduler.scheduler_cls = f"vllm_std.seams.scheduler.{name}"
    if options.adaptive:
        options.num_speculative_tokens_per_batch_size = options.graph_lengths(scheduler.max_num_seqs)


def _compile_or_warm_up_model(plain, self):
    plain(self)
    if is_std(self.vllm_config) and self.vllm_config.speculative_config.adaptive:
        from vllm_std.seams import calibration

        calibration.calibrate(self)


def _determine_available_memory(plain, self):
    memory, vllm_config = plain(self), self.vllm_config
    if not is_std(vllm_config):
        return memory
    from vllm.utils.torch_utils import kv_cache_dtype_str_to_dtype

    from vllm_std.selection import POLICIES, selection_bytes
    from vllm_std.selection.summaries import share_of_kv

    model, cache, options = vllm_config.model_config, vllm_config.cache_config, vllm_config.speculative_config
    parallel, reqs = vllm_config.parallel_config, vllm_config.scheduler_config.max_num_seqs
    layers, heads = model.get_num_layers(parallel), model.get_num_attention_heads(parallel)
    fixed, share = selection_bytes(options, cache.block_size, layers, reqs, heads), 0.0
    if POLICIES[options.selection].needs_summaries:
        cached = kv_cache_dtype_str_to_dtype(cache.cache_dtype, model)
        share = share_of_kv(model.dtype.itemsize, cached.itemsize, cache.block_size)
    return [int((available - fixed) / (1 + share)) for available in memory]


def _init_speculator(plain, vllm_config, device, *args, **kwargs):
    if not is_std(vllm_config):
        return plain(vllm_config, device, *args, **kwargs)
    require_supported_version()
    try:
        from vllm_std.speculator import StdSpeculator
    except ImportError as error:
        raise ValueError(
            f"speculative method 'std' cannot start: vLLM {vllm_version()} lacks a seam ({error})."
        ) from None
    from vllm_std.seams.worker import GPUModelRunner

    _wrap(GPUModelRunner, "sample", _sample)
    _wrap(GPUModelRunner, "sample_tokens", _sample_tokens)
    return StdSpeculator(vllm_config, device)


def _sample(plain, self, hidden_states, input_batch, *args, **kwargs):
    """vLLM maps adapters to one logit of each request; a request with drafts has more."""
    adapters = getattr(self.speculator, "adapters", None)
    if adapters is not None and input_batch.num_draft_tokens:
        adapters.map(np.diff(input_batch.cu_num_logits_np))
    return plain(self, hidden_states, input_batch, *args, **kwargs)


def _sample_tokens(plain, self, *args, **kwargs):
    """Tell the scheduler of rounds that failed, with the tokens of the step."""
    output = plain(self, *args, **kwargs)
    faults = getattr(self.speculator, "faults", None)
    if faults is not None and faults.counts and output is not None:
        getattr(output, "model_runner_output", output).std_faults = faults.take()
    return output


def is_std(vllm_config) -> bool:
    return getattr(vllm_config.speculative_config, "method", None) == "std"
