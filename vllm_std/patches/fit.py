"""Whether the installed vLLM fits: `patches.contract`, compared with the functions and classes that are there."""

import inspect
from functools import cache
from pkgutil import resolve_name
from typing import Any

from vllm_std import __version__
from vllm_std.patches.contract import CONTRACT, TOOLS, Need
from vllm_std.patches.wrapping import vllm_version

TESTED_VLLM = ("0.32", "0.33")


def require() -> None:
    """Raise ValueError, in one sentence, where this vLLM does not fit; warn once where it does and was not tested."""
    version = vllm_version()
    for patch, misfit in misfits().items():
        raise ValueError(
            f"speculative method 'std' does not fit vLLM {version}, by its patch '{patch}': {misfit}. Install vLLM "
            f"{' or '.join(TESTED_VLLM)}, or a newer vllm-std; vLLM without 'std' is not affected."
        )
    if not tested():
        from vllm_std.faults import logger

        logger.warning_once(
            "std: vllm-std %s was tested with vLLM %s, not with %s; all that it patches is there, so it starts.",
            __version__,
            " and ".join(TESTED_VLLM),
            version,
        )


def tested() -> bool:
    return vllm_version().startswith(tuple(version + "." for version in TESTED_VLLM))


@cache
def misfits(tools: bool = False) -> dict[str, str]:
    """{name of a patch: what was expected and what was found}, of each that does not fit; only the first need of each.

    tools: those of `vllm-std acceptance` and `bench` too. Imports the modules of vLLM that patches use.
    """
    found = {name: first_misfit(needs) for name, needs in CONTRACT.items() if tools or name not in TOOLS}
    return {name: misfit for name, misfit in found.items() if misfit}


def first_misfit(needs: tuple[Need, ...]) -> str | None:
    return next((misfit for need in needs if (misfit := _misfit(need))), None)


def _misfit(need: Need) -> str | None:
    """What was expected and what was found, or None where both are alike."""
    name = need.where.replace(":", ".").rstrip(".")
    try:
        there: Any = resolve_name(need.where)
    except (ImportError, AttributeError) as error:
        return f"{name} is expected, and there is none ({error})"
    if need.how == "reads":
        missing = [word for word in need.what.split() if word not in _names(there)]
        return f"{name} is expected to have {missing[0]}, and has not" if missing else None
    try:
        signature = inspect.signature(there)
    except (TypeError, ValueError):
        return f"{name} is expected to be a function, and is {type(there).__name__}"
    if _alike(need, signature):
        return None
    return f"{name}({need.what}) is expected, and it is {name}({', '.join(_parameters(signature))})"


def _alike(need: Need, signature: inspect.Signature) -> bool:
    if need.how == "calls":
        return _takes(signature, need.what)
    has = _parameters(signature)
    for alternative in need.what.split(" | "):
        wanted = [part for part in alternative.split(", ") if part]
        if wanted[-1:] == ["..."] and has[: len(wanted) - 1] == wanted[:-1] or has == wanted:
            return True
    return False


def _takes(signature: inspect.Signature, passed: str) -> bool:
    """Whether a function can be called so, and its parameters by position have the names they are passed for."""
    parts = [part for part in passed.split(", ") if part]
    positional = [part for part in parts if not part.endswith("=")]
    try:
        bound = signature.bind(*positional, **{part[:-1]: None for part in parts if part.endswith("=")})
    except TypeError:
        return False
    return list(bound.arguments)[: len(positional)] == positional


def _parameters(signature: inspect.Signature) -> list[str]:
    """Names, as a call would see them: `*args` and `**kwargs` with their stars."""
    stars: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    return [stars.get(parameter.kind, "") + name for name, parameter in signature.parameters.items()]


def _names(owner: Any) -> set[str]:
    """Attributes of a module or class, and those that its functions mention, because what they set
    is there in instances only."""
    found = set(dir(owner))
    for base in getattr(owner, "__mro__", ()):
        found.update(vars(base), vars(base).get("__annotations__", ()))
        for member in vars(base).values():
            code = getattr(inspect.unwrap(member) if callable(member) else member, "__code__", None)
            found.update(code.co_names if code is not None else ())
    return found
