"""What `vllm-std check` asks of vLLM before any engine is started."""

from typing import Any


def missing() -> str | None:
    """What of vLLM's inside is not where std expects it; None where all of it is."""
    from vllm_std import seams

    try:
        seams.install()
        import vllm_std.speculator  # noqa: F401
        from vllm_std.seams import calibration, requests, scheduler, stats, worker  # noqa: F401
    except (ImportError, AttributeError) as error:
        return str(error)
    return None


def device() -> dict[str, Any]:
    """The hardware as vLLM sees it: `name`, `platform` and, of a GPU, `capability` and `memory_gib`."""
    from vllm.platforms import current_platform

    found: dict[str, Any] = {"platform": current_platform.device_name, "name": current_platform.get_device_name()}
    if current_platform.is_cuda():
        found["capability"] = ".".join(map(str, current_platform.get_device_capability()))
        found["memory_gib"] = round(current_platform.get_device_total_memory() / 2**30, 1)
    return found


def engine_config(model: str, options: dict[str, Any]) -> Any:
    """The VllmConfig of a server with std, weights not loaded. Raises ValueError for what vLLM or std refuses."""
    from vllm.engine.arg_utils import EngineArgs

    return EngineArgs(model=model, **options).create_engine_config()


def backend(vllm_config) -> str:
    """The attention backend that vLLM will choose."""
    from vllm.config import set_current_vllm_config
    from vllm.v1.attention.selector import get_attn_backend

    model = vllm_config.model_config
    with set_current_vllm_config(vllm_config):
        return get_attn_backend(model.get_head_size(), model.dtype, vllm_config.cache_config.cache_dtype).get_name()
