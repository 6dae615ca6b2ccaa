"""The demo: one question for exactness, then several clients for speed."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.live import Live
from rich.text import Text

from vllm_std.tools.bench.sides import SIDES, ServerOf, own_servers
from vllm_std.tools.check.installation import require_start
from vllm_std.tools.console import terminal
from vllm_std.tools.demo import clients, exact, questions, servers


@dataclass(frozen=True)
class DemoSettings:
    """engine: arguments of vLLM that the user gave; std: options of std for the single question.

    tokens: most of an answer; turns: of each side, when `clients` clients ask at once.
    """

    model: str
    video: Path | None
    question: str | None
    engine: dict[str, Any]
    std: dict[str, Any]
    tokens: int
    clients: int
    turns: int


def run(settings: DemoSettings, silent: bool, show: Callable) -> dict[str, Any]:
    """What was found, for JSON; show: prints text.

    Raises ValueError where std would not start or a server does not, and OSError where a file cannot be read.
    """
    engine = servers.for_one(settings.engine)
    question = questions.one_question(settings.video, settings.question)
    require_start(settings.model, engine | {"speculative_config": settings.std})
    asked = questions.client_questions(settings.video, settings.question, settings.clients)
    many_engine = servers.for_many(settings.engine, settings.clients, all_frames=settings.video is None)
    many_servers = own_servers(settings.model, many_engine, {})
    one_servers = own_servers(settings.model, engine, settings.std)
    early = SIDES if servers.on_cpu() else ()  # a GPU has no memory for several servers
    if early:
        servers.use_all_cores()
    with servers.started(many_servers, early if asked else (), at_a_time=1) as many:
        with servers.started(one_servers, early, at_a_time=2) as one:
            commands = exact.serve_commands(settings.model, settings.std)
            found = exact.compare(one, question, settings.tokens, show, commands)
        show(f"\n{exact.sentence(found)}")
        if asked:
            found["together"] = compare_speed(
                clients.Clients(asked, settings.tokens, settings.turns), many, silent, show
            )
    return found | {"must_be_equal": engine.get("dtype") == "float32"}


def compare_speed(asking: clients.Clients, server_of: ServerOf, silent: bool, show: Callable) -> dict[str, Any]:
    first = asking.questions[0]
    show(f"\nvideo:    {first.video}\n{len(asking.questions)} clients at once, the first of them asks:")
    show(f"question: {first.text}\n")
    taken = clients.take_turns(asking, server_of, servers.on_cpu(), partial(_watch, silent))
    summary = clients.summarise(asking, taken)
    show(f"\n{clients.sentence(summary)}")
    return summary


@contextmanager
def _watch(silent: bool, side: str) -> Iterator[clients.ShowTokens]:
    """Show the tokens of a turn, and how many a second: on a terminal as they come, else when the turn ends."""
    begun, console, line = time.perf_counter(), terminal(sys.stdout), Text()

    def show_tokens(tokens: int) -> None:
        line.plain = f"{side:5} {tokens:6,} tokens {tokens / (time.perf_counter() - begun):6,.0f} tokens/s"

    if silent or not console.is_terminal:
        yield show_tokens
        if not silent:
            console.print(line)
    else:
        with Live(line, console=console):
            yield show_tokens
