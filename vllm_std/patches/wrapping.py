"""How vLLM is patched: functions are wrapped, and each patch says why and until when."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any


@dataclass(frozen=True)
class Patch:
    """An entry of the ledger: something of vLLM that std replaces or reads.

    name: as `patches.contract` and error messages name it. replaces: the names in vLLM. why: what vLLM's public surface
    lacks. upstream: where vLLM discusses it. remove_when: what vLLM would have to offer for the patch to go.
    """

    name: str
    replaces: str
    why: str
    upstream: str
    remove_when: str


def vllm_version() -> str:
    import vllm

    return vllm.__version__


def is_std(vllm_config, *_, **__) -> bool:
    """Whether an engine was asked to draft with std."""
    return getattr(vllm_config.speculative_config, "method", None) == "std"


def wrap(
    owner: Any,
    name: str,
    around: Callable | str,
    applies: Callable[..., bool] | None = None,
    static: bool = False,
) -> None:
    """Replace owner.name by a function that calls around(original, ...). Safe to call any number of times.

    around: a function, or "module:function" of this package, which is imported when it is first needed.
    applies: called with the same arguments; where it is false, vLLM's original is called and nothing imported.
    """
    original = getattr(owner, name)
    if hasattr(original, "__vllm_std__"):
        return

    @functools.wraps(original)
    def wrapper(*args, **kwargs):
        if applies is not None and not applies(*args, **kwargs):
            return original(*args, **kwargs)
        function = resolve_name(f"{__package__}.{around}") if isinstance(around, str) else around
        return function(original, *args, **kwargs)

    wrapper.__vllm_std__ = True  # type: ignore[attr-defined]
    setattr(owner, name, staticmethod(wrapper) if static else wrapper)
