"""How a function of vLLM is wrapped, and whether an engine was asked for std."""

import functools
from collections.abc import Callable
from typing import Any


def vllm_version() -> str:
    import vllm

    return vllm.__version__


def wrap(owner: Any, name: str, around: Callable, static: bool = False) -> None:
    """Replace owner.name by a function that calls around(plain, ...)."""
    plain = getattr(owner, name)
    if hasattr(plain, "__vllm_std__"):
        return

    @functools.wraps(plain)
    def wrapper(*args, **kwargs):
        return around(plain, *args, **kwargs)

    wrapper.__vllm_std__ = True  # type: ignore[attr-defined]
    setattr(owner, name, staticmethod(wrapper) if static else wrapper)


def is_std(vllm_config) -> bool:
    return getattr(vllm_config.speculative_config, "method", None) == "std"
