"""The two sides of a comparison, plain vLLM and std, the servers of each, and whose turn it is."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from vllm_std.patches import benchmark

PLAIN = "plain"
STD = "std"
SIDES = (PLAIN, STD)

# Of a side: runs its server as long as the block lasts, and gives the base URL.
ServerOf = Callable[[str], AbstractContextManager[str]]


def own_servers(model: str, engine: dict[str, Any], std: dict[str, Any]) -> ServerOf:
    """A server for each side: plain vLLM does not load the plugin.

    engine: arguments as `vllm.EngineArgs` names them; std: options of std.
    """

    def server_of(side: str) -> AbstractContextManager[str]:
        speculative = {"speculative_config": {"method": "std"} | std} if side == STD else {}
        return benchmark.served(model, engine | speculative)

    return server_of


def running_server(url: str) -> ServerOf:
    """One server with std for both sides; plain requests leave std out."""
    return lambda side: nullcontext(url.rstrip("/"))


def turns(repeats: int, sides: tuple[str, str] = SIDES) -> Iterator[tuple[int, str]]:
    """(repeat, side): so many turns of each side; which side begins changes from one repeat to the next."""
    for repeat in range(repeats):
        for side in sides if repeat % 2 == 0 else reversed(sides):
            yield repeat, side
