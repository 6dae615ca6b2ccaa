"""Sends each launch of a Triton kernel to its native replacement, or else to Triton's interpreter, and keeps the time.

A replacement has the kernel's own argument names, so that a vLLM whose kernel takes other arguments falls back to the
interpreter instead of being misread. `VLLM_STD_NATIVE=0` has everything interpreted.
"""

import importlib
import inspect
import logging
import os
import pkgutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from triton.runtime.interpreter import InterpretedFunction

logger = logging.getLogger("vllm.triton_cpu")
HOME = "vllm.v1.worker."


@dataclass(frozen=True)
class Native:
    """function: the replacement, called by name with those of the kernel's arguments that it has, and with `grid` if it
    asks for that; returns NotImplemented for a launch that it leaves to the interpreter. unused: names of arguments
    that say nothing to it."""

    function: Callable[..., Any]
    unused: frozenset[str]

    @cached_property
    def parameters(self) -> dict[str, inspect.Parameter]:
        return dict(inspect.signature(self.function).parameters)

    def fits(self, names: list[str]) -> bool:
        """Whether it knows all arguments of a kernel, and the kernel has all that it cannot do without."""
        known = self.parameters
        needed = {name for name, given in known.items() if given.default is given.empty} - {"grid"}
        return needed <= set(names) <= known.keys() | self.unused


KERNELS: dict[str, Native] = {}
native_launches = True


def native(kernel: str, unused: str = "") -> Callable:
    """Make the decorated function the replacement of a kernel, named by its path below `vllm.v1.worker`."""

    def add(function: Callable) -> Callable:
        KERNELS[HOME + kernel] = Native(function, frozenset(unused.split()))
        return function

    return add


class Launches:
    """Launches of this process: seconds and numbers by kernel, and those of them that were interpreted."""

    def __init__(self):
        self.clear()

    def clear(self) -> None:
        self.seconds, self.interpreted = Counter(), Counter()
        self.began, self.ended = time.perf_counter(), 0.0

    def add(self, kernel: str, seconds: float, interpreted: bool) -> None:
        if not self.seconds:
            self.began = time.perf_counter() - seconds
        self.ended = time.perf_counter()
        self.seconds[kernel] += seconds
        if interpreted:
            self.interpreted[kernel] += seconds

    @property
    def share(self) -> float:
        """Of the time from the first launch to the last, what interpreted launches took."""
        return sum(self.interpreted.values()) / max(self.ended - self.began, 1e-9)

    def report(self) -> None:
        """One line of the log, at the end of a process that launched kernels."""
        if not self.seconds:
            return
        natives = len(self.seconds.keys() - self.interpreted.keys())
        names = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in self.interpreted.most_common(8))
        logger.info(
            "Triton kernels without Triton's interpreter: %d of %d. Interpreted launches took %.1f %% of the time from "
            "the first launch to the last%s.", natives, len(self.seconds), 100 * self.share, f": {names}" * bool(names),
        )  # fmt: skip


launches = Launches()


def install() -> None:
    """Take over the launches of Triton's interpreter, in this process."""
    interpret = InterpretedFunction.run
    known: dict[InterpretedFunction, tuple[str, Native | None]] = {}

    def run(self, *args, grid, warmup, **kwargs):
        if warmup:
            return
        if self not in known:
            known[self] = _find(self)
        name, replacement = known[self]
        began, done = time.perf_counter(), NotImplemented
        if replacement is not None and native_launches:
            done = _call(replacement, self.arg_names, grid, args, kwargs)
        if done is NotImplemented:
            interpret(self, *args, grid=grid, warmup=warmup, **kwargs)
        launches.add(name, time.perf_counter() - began, done is NotImplemented)

    InterpretedFunction.run = run
    from multiprocessing.util import Finalize

    Finalize(None, launches.report, exitpriority=0)  # the engine's process runs no `atexit`


def _find(kernel: InterpretedFunction) -> tuple[str, Native | None]:
    """The name of a kernel as the report has it, and its replacement."""
    path = f"{kernel.fn.__module__}.{kernel.fn.__qualname__}"
    if os.environ.get("VLLM_STD_NATIVE") == "0" or not path.startswith(HOME):
        return path, None
    load()
    replacement = KERNELS.get(path)
    if replacement is not None and not replacement.fits(kernel.arg_names):
        logger.warning("The arguments of %s are not those that its native replacement knows: it is interpreted.", path)
        replacement = None
    return path.removeprefix(HOME), replacement


def load() -> None:
    """Import all replacements; compiled ones come from numba's cache, except for the first time."""
    package = importlib.import_module(__package__)
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{__package__}.{module.name}")


def _call(replacement: Native, names: list[str], grid: tuple, args: tuple, kwargs: dict[str, Any]) -> Any:
    given = dict(zip(names, args), grid=grid) | kwargs
    return replacement.function(**{name: given[name] for name in replacement.parameters if name in given})
