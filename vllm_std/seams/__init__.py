"""The seam ledger: every place where vllm-std touches the inside of vLLM, and nothing else does.

Each entry says what is replaced or read, why vLLM's public surface is not enough, where upstream discusses it, and
when the entry can go. What the draft loop imports from a worker stands in `seams.worker`. `install()` is re-entrant and
cheap: it wraps functions that fall through to vLLM's own unless the speculative method is `std`. A seam that is missing
makes one sentence at start-up, never a trace in mid-request.
"""

import functools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

SUPPORTED_VLLM = ("0.32", "0.33")
ANY_VERSION = "VLLM_STD_ANY_VERSION"


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
        "key summaries grow with the number of KV blocks, which vLLM derives from all memory that is free",
        "none",
        "a speculator can ask for memory by the KV block",
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
        "key layout",
        "Attention.impl.do_kv_cache_update on the null block (a pattern is written and read back once)",
        "the interior of a KV block is the backend's secret; the CPU kernels pack it by instruction set",
        "none",
        "backends describe the layout of a block",
    ),
    Seam(
        "lab",
        "five parts of an in-process engine, listed in seams.lab; `vllm-std acceptance` alone goes there",
        "vLLM counts drafts for all requests together, and fixes draft length and drafter at start-up",
        "none",
        "RequestOutput tells the drafts of its request, and a speculator's options can change",
    ),
)


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
    _wrap(spec_decode, "init_speculator", _init_speculator)
    # The runner imports the function by name, so it may hold the plain one already.
    runner = sys.modules.get("vllm.v1.worker.gpu.model_runner")
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

    wrapper.__vllm_std__ = True
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
    given = {key.replace("-", "_"): value for key, value in (self.speculative_config or {}).items()}
    if "std" not in (self.spec_method, given.get("method")):
        return plain(self, *args, **kwargs)
    from vllm_std.config import StdConfig

    require_supported_version()
    flags = {"method": self.spec_method, "model": self.spec_model, "num_speculative_tokens": self.spec_tokens}
    for key, value in flags.items():
        if value is None:
            continue
        if given.get(key, value) != value:
            raise ValueError(
                f"speculative option {key} is given twice: {value!r} and {given[key]!r}; give one of them."
            )
        given[key] = value
    return StdConfig.from_options(given, *args, **kwargs)


def _create_engine_config(plain, self, *args, **kwargs):
    vllm_config = plain(self, *args, **kwargs)
    if is_std(vllm_config):
        from vllm_std.config import refuse_unsupported

        refuse_unsupported(vllm_config)
    return vllm_config


def _determine_available_memory(plain, self):
    memory, vllm_config = plain(self), self.vllm_config
    if not is_std(vllm_config):
        return memory
    from vllm.utils.torch_utils import kv_cache_dtype_str_to_dtype

    from vllm_std.selection import POLICIES
    from vllm_std.selection.summaries import share_of_kv

    if not POLICIES[vllm_config.speculative_config.selection].needs_summaries:
        return memory
    model, cache = vllm_config.model_config, vllm_config.cache_config
    cached = kv_cache_dtype_str_to_dtype(cache.cache_dtype, model)
    share = share_of_kv(model.dtype.itemsize, cached.itemsize, cache.block_size)
    return [int(available / (1 + share)) for available in memory]


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
    return StdSpeculator(vllm_config, device)


def is_std(vllm_config) -> bool:
    return getattr(vllm_config.speculative_config, "method", None) == "std"
