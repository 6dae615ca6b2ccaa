"""Which functions of vLLM are wrapped in every process that loads the plugin.

Each falls through to vLLM's original unless the speculative method is `std`; only then is the module imported that
holds the patch, with its entry of the ledger beside it. What all patches need of vLLM is data (`patches.contract`),
which a server that is asked for std compares with the installed vLLM (`patches.fit`): where vLLM has changed, one
sentence at start-up says so, instead of an error in the middle of a request.
"""

import sys
from contextlib import suppress
from typing import Any, Literal, get_args

from vllm_std.patches.wrapping import Patch, is_std, wrap

CLI = Patch(
    name="cli",
    replaces="vllm.engine.arg_utils.EngineArgs.add_cli_args",
    why="choices of --spec-method come from a closed Literal, and --speculative-method is not a flag of vLLM",
    upstream="vLLM RFC #36219",
    remove_when="out-of-tree methods can register a name",
)
ASYNC_SCHEDULING = Patch(
    name="async scheduling",
    replaces="the Literal vllm.config.vllm.NgramGPUTypes (vLLM 0.32; on 0.33 it has no effect)",
    why="0.32 switches async scheduling off for every method it does not know by name, on Model Runner V2 too",
    upstream="vLLM RFC #47351",
    remove_when="support for vLLM 0.32 ends",
)


def install() -> None:
    """Wrap. Safe to call any number of times, in any vLLM process.

    Raises ImportError or AttributeError where std cannot be asked for. What else is missing `patches.fit` reports when
    std is asked for.
    """
    from vllm.engine.arg_utils import EngineArgs

    wrap(EngineArgs, "add_cli_args", _add_cli_args, static=True)
    wrap(EngineArgs, "create_speculative_config", "options:create_speculative_config", applies=_asks_for_std)
    wrap(EngineArgs, "create_engine_config", "engine_config:create_engine_config", applies=_asks_for_std)
    with suppress(ImportError, AttributeError):
        _install_engine()


def _install_engine() -> None:
    """What processes of an engine call before they know whether it drafts with std."""
    import vllm.config.vllm as config
    import vllm.v1.worker.gpu.spec_decode as spec_decode
    from vllm.v1.executor import Executor

    wrap(config.VllmConfig, "_set_max_num_scheduled_tokens", "engine_config:set_token_budget", applies=is_std)
    if "std" not in get_args(config.NgramGPUTypes):
        config.NgramGPUTypes = Literal[*get_args(config.NgramGPUTypes), "std"]
    wrap(Executor, "determine_available_memory", "memory:determine_available_memory", applies=_drafts_with_std)
    wrap(Executor, "initialize_from_config", "executor:initialize_from_config", applies=_drafts_with_std)
    wrap(Executor, "compile_or_warm_up_model", "executor:compile_or_warm_up_model", applies=_drafts_with_std)
    wrap(spec_decode, "init_speculator", "runner:init_speculator", applies=is_std)
    # The runner imports the function by name, so it may hold the original already.
    runner: Any = sys.modules.get("vllm.v1.worker.gpu.model_runner")
    if runner is not None:
        runner.init_speculator = spec_decode.init_speculator


def _asks_for_std(engine_args, *_, **__) -> bool:
    config = engine_args.speculative_config
    return "std" in (engine_args.spec_method, config.get("method") if isinstance(config, dict) else None)


def _drafts_with_std(executor, *_, **__) -> bool:
    return is_std(executor.vllm_config)


def _add_cli_args(original, parser):
    parser = original(parser)
    action = parser._option_string_actions.get("--spec-method")
    if action is None or "std" in (action.choices or ()):
        return parser
    if action.choices is not None:
        action.choices = [*action.choices, "std"]
    action.help += "\n\nstd: the target drafts on its own KV cache, through a sparse mask of it (vllm-std)."
    action.option_strings.append("--speculative-method")
    parser._option_string_actions["--speculative-method"] = action
    return parser
