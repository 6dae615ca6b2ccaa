"""The seams: every place where vllm-std touches the inside of vLLM; `seams.ledger` says why, and until when.

What the draft loop imports from a worker stands in `seams.worker`, what the acceptance lab reads in `seams.lab`.
`install()` is re-entrant and cheap: it wraps functions that fall through to vLLM's own unless the speculative method is
`std`. What all of them need of vLLM is data (`seams.contract`), and a server that is asked for std compares it with the
installed vLLM (`seams.fit`): a seam that moved makes one sentence at start-up, never a trace in mid-request.
"""

import sys
from contextlib import suppress
from typing import Any, Literal, get_args

import numpy as np

from vllm_std.patches.wrapping import is_std, wrap

GRAPH_SIZES = "cudagraph_capture_sizes", "max_cudagraph_capture_size"


def install() -> None:
    """Put the wrappers of the ledger in place. Safe to call any number of times, in any vLLM process.

    Raises ImportError or AttributeError where std cannot be asked for; what else is missing, who asks for it is told.
    """
    from vllm.engine.arg_utils import EngineArgs

    wrap(EngineArgs, "add_cli_args", _add_cli_args, static=True)
    wrap(EngineArgs, "create_speculative_config", _create_speculative_config)
    wrap(EngineArgs, "create_engine_config", _create_engine_config)
    with suppress(ImportError, AttributeError):
        _install_engine()


def _install_engine() -> None:
    """What processes of an engine go through, before they know whether it drafts with std."""
    import vllm.config.vllm as config
    import vllm.v1.worker.gpu.spec_decode as spec_decode
    from vllm.v1.executor import Executor

    wrap(config.VllmConfig, "_set_max_num_scheduled_tokens", _set_max_num_scheduled_tokens)

    if "std" not in get_args(config.NgramGPUTypes):
        config.NgramGPUTypes = Literal[*get_args(config.NgramGPUTypes), "std"]

    wrap(Executor, "determine_available_memory", _determine_available_memory)
    wrap(Executor, "initialize_from_config", _initialize_from_config)
    wrap(Executor, "compile_or_warm_up_model", _compile_or_warm_up_model)
    wrap(spec_decode, "init_speculator", _init_speculator)
    # The runner imports the function by name, so it may hold the plain one already.
    runner: Any = sys.modules.get("vllm.v1.worker.gpu.model_runner")
    if runner is not None:
        runner.init_speculator = spec_decode.init_speculator


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
    from vllm_std.patches.fit import require

    require()
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
    from vllm_std.patches import requests, stats

    requests.install()
    stats.install()


def _create_engine_config(plain, self, *args, **kwargs):
    asked = self, self.compilation_config
    limited = any(getattr(of, name, None) for of in asked for name in GRAPH_SIZES)  # before vLLM fills them in
    vllm_config = plain(self, *args, **kwargs)
    if is_std(vllm_config):
        from vllm_std.config import refuse_unsupported
        from vllm_std.patches import probe

        refuse_unsupported(vllm_config)
        probe.choose_backend(vllm_config)
        if limited and (most := vllm_config.compilation_config.max_cudagraph_capture_size):
            vllm_config.speculative_config.graph_limit = most
        _schedule_drafts(vllm_config)
    return vllm_config


def _set_max_num_scheduled_tokens(plain, self):
    """vLLM warns of fewer than 8,192 tokens a step with drafts, because most methods take some of them away."""
    if not is_std(self):
        return plain(self)
    if self.scheduler_config.max_num_scheduled_tokens is None:
        self.scheduler_config.max_num_scheduled_tokens = self.scheduler_config.max_num_batched_tokens


def _schedule_drafts(vllm_config) -> None:
    """Have vLLM build std's scheduler."""
    scheduler = vllm_config.scheduler_config
    name = "AsyncStdScheduler" if scheduler.async_scheduling else "StdScheduler"
    scheduler.scheduler_cls = f"vllm_std.control.scheduler.{name}"


def _compile_or_warm_up_model(plain, self):
    plain(self)
    if is_std(self.vllm_config) and self.vllm_config.speculative_config.adaptive:
        from vllm_std.control import calibration

        calibration.calibrate(self)


def _initialize_from_config(plain, self, kv_cache_configs, *args, **kwargs):
    """Calibration needs the KV cache groups, which only the engine knows."""
    if is_std(self.vllm_config):
        from vllm_std.patches.blocks import groups_of

        self.vllm_config.speculative_config.kv_groups = groups_of(kv_cache_configs[0])
    return plain(self, kv_cache_configs, *args, **kwargs)


def _determine_available_memory(plain, self):
    memory = plain(self)
    if not is_std(self.vllm_config):
        return memory
    from vllm_std.patches.memory import needs

    fixed, share = needs(self.vllm_config, self.get_kv_cache_specs()[0])
    return [int((available - fixed) / (1 + share)) for available in memory]


def _init_speculator(plain, vllm_config, device, *args, **kwargs):
    if not is_std(vllm_config):
        return plain(vllm_config, device, *args, **kwargs)
    from vllm_std.patches.fit import require

    require()  # again, because a worker may be on another machine
    from vllm_std.draft.speculator import StdSpeculator
    from vllm_std.patches import graphs, logprobs
    from vllm_std.patches.worker import GPUModelRunner

    logprobs.install()
    wrap(graphs.ModelCudaGraphManager, "__init__", graphs.init)
    wrap(graphs.ModelCudaGraphManager, "capture", graphs.capture)
    wrap(GPUModelRunner, "prepare_inputs", graphs.prepare_inputs)
    wrap(GPUModelRunner, "load_model", _load_model)
    wrap(GPUModelRunner, "sample", _sample)
    wrap(GPUModelRunner, "sample_tokens", _sample_tokens)
    return StdSpeculator(vllm_config, device)


def _load_model(plain, self, *args, **kwargs):
    """The runner's sampler, made here, knows what requests leave out of their distributions."""
    loaded = plain(self, *args, **kwargs)
    drafts_by_std = hasattr(self.speculator, "truncation")
    if drafts_by_std and self.sampler is not None and self.speculator.draft_logits is not None:
        from vllm_std.patches.truncation import Truncation

        self.speculator.truncation = Truncation(self.sampler.sampling_states, self.device)
    return loaded


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
