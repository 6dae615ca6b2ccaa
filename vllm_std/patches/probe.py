"""What std and `vllm-std check` ask of vLLM before any engine is started."""

from contextlib import suppress
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from vllm_std.faults import logger
from vllm_std.patches.wrapping import Patch
from vllm_std.refusals import BACKENDS

BACKEND = Patch(
    name="backend",
    replaces="AttentionConfig.backend, where nobody has set it and the platform's first choice is none of std's",
    why="on some GPUs vLLM's first choice is a backend that std does not draft on, and a method has no say in it",
    upstream="none",
    remove_when="a speculative method can name the attention backends it works with",
)


def device() -> dict[str, Any]:
    """The hardware as vLLM sees it: `name`, `platform` and, of a GPU, `capability` and `memory_gib`."""
    from vllm.platforms import current_platform

    found: dict[str, Any] = {"platform": current_platform.device_name, "name": current_platform.get_device_name()}
    if current_platform.is_cuda():
        found["capability"] = ".".join(map(str, current_platform.get_device_capability()))
        found["memory_gib"] = round(current_platform.get_device_total_memory() / 2**30, 1)
    return found


def cache_folder() -> Path:
    """Where std keeps files from one start to the next, inside vLLM's own cache; may not be there yet."""
    from vllm import envs

    return Path(envs.VLLM_CACHE_ROOT) / "vllm_std"


def engine_config(model: str, options: dict[str, Any]) -> Any:
    """The VllmConfig of a server with std, weights not loaded. Raises ValueError for what vLLM or std refuses."""
    from vllm.engine.arg_utils import EngineArgs

    known = {field.name: field.type for field in fields(EngineArgs)}
    for name, value in options.items():
        _require_argument(name, value, known)
    return EngineArgs(model=model, **options).create_engine_config()


def _require_argument(name: str, value: Any, known: dict[str, Any]) -> None:
    """Raise ValueError for an argument that vLLM does not have, or not of such a value; known: types by name."""
    from pydantic import TypeAdapter, ValidationError

    if name not in known:
        near = get_close_matches(name, known, n=1) or ["max_model_len"]
        raise ValueError(f"vLLM has no engine argument {name}={value!r}: names are those of its flags, as {near[0]}.")
    with suppress(TypeError, AttributeError, RuntimeError):  # types that pydantic knows nothing of, vLLM checks itself
        try:
            TypeAdapter(known[name]).validate_python(value)
        except ValidationError as error:
            said = error.errors()[0]["msg"]
            raise ValueError(f"engine argument {name}={value!r} does not work: {said}.") from None


def backend(vllm_config) -> str:
    """The name of the attention backend that vLLM will choose."""
    return _backend(vllm_config).get_name()


def _backend(vllm_config) -> Any:
    from vllm.config import set_current_vllm_config
    from vllm.v1.attention.selector import get_attn_backend

    model = vllm_config.model_config
    with set_current_vllm_config(vllm_config):
        return get_attn_backend(model.get_head_size(), model.dtype, vllm_config.cache_config.cache_dtype)


def choose_backend(vllm_config) -> None:
    """Where nobody has chosen an attention backend and the platform's first choice is none that std drafts on, as on
    GPUs for which that is FlashInfer, choose one that it does."""
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    attention = vllm_config.attention_config
    if attention.backend is not None or (first := backend(vllm_config)) in BACKENDS:
        return
    for name in BACKENDS:
        attention.backend = AttentionBackendEnum[name]
        with suppress(ValueError, ImportError):  # what the platform or the model does not allow
            if backend(vllm_config) == name:
                logger.info_once("std: attention runs on %s, because std does not draft on %s.", name, first)
                return
    attention.backend = None


def mixed_batches(vllm_config) -> bool:
    """Whether the attention backend replays CUDA graphs of batches of mixed query lengths, as far as it says so
    before it is built."""
    from vllm.v1.attention.backend import AttentionCGSupport

    builder = _backend(vllm_config).get_builder_cls()
    return builder.get_cudagraph_support(vllm_config, None) == AttentionCGSupport.ALWAYS
