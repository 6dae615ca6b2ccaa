"""Several clients at once ask about one long video: tokens per second through plain vLLM and through std.

The video is in the prefix cache of both servers before anything is timed, so what is timed is decoding. The sides take
turns, because how fast a machine is changes from one second to the next.
"""

import asyncio
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from vllm_std.tools.bench.run import SIDES, Server, in_turns
from vllm_std.tools.demo.ask import Answer, Ask, Question, asker

Show = Callable[[int], None]  # tokens of a turn so far
Watch = Callable[[str], AbstractContextManager[Show]]  # side: whatever shows one of its turns


@dataclass(frozen=True)
class Clients:
    """questions: one of each client; tokens: most of an answer; turns: of each side."""

    questions: list[Question]
    tokens: int
    turns: int


@dataclass
class Side:
    """seconds, tokens: of each turn, of all its answers; answers: of the last turn."""

    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)

    @property
    def rates(self) -> list[float]:
        """Tokens per second of each turn."""
        return [tokens / seconds for tokens, seconds in zip(self.tokens, self.seconds)]

    def turn(self, ask: Ask, clients: Clients, watched: AbstractContextManager[Show]) -> None:
        with watched as show:
            begun = time.perf_counter()
            self.answers = asyncio.run(_ask_all(ask, clients, show))
            self.seconds.append(time.perf_counter() - begun)
        self.tokens.append(sum(answer.tokens for answer in self.answers))


def race(clients: Clients, server: Server, at_once: bool, watch: Watch) -> dict[str, Side]:
    """What each side did. at_once: whether both servers fit the machine; else std's starts when plain's has ended.

    Raises ValueError where a server does not start.
    """
    found = {side: Side() for side in SIDES}
    for together in [SIDES] if at_once else [[side] for side in SIDES]:
        with ExitStack() as stack:
            asks = {side: asker(stack.enter_context(server(side))) for side in together}
            for side in together:
                _warm_up(asks[side], clients)
            for _, side in in_turns(clients.turns):
                if side in asks:
                    found[side].turn(asks[side], clients, watch(side))
    return found


def _warm_up(ask: Ask, clients: Clients) -> None:
    """One asks alone, for a word: the server computes the video, and keeps it in its caches."""
    asyncio.run(ask(clients.questions[0], 1, lambda *_: None))


async def _ask_all(ask: Ask, clients: Clients, show: Show) -> list[Answer]:
    so_far = [0] * len(clients.questions)

    def came(client: int, piece: str, tokens: int) -> None:
        so_far[client] = tokens
        show(sum(so_far))

    asked = enumerate(clients.questions)
    each = (ask(question, clients.tokens, partial(came, client), sent=True) for client, question in asked)
    return await asyncio.gather(*each)


# ------------------------------------------------------------ what it says


def summary(clients: Clients, found: dict[str, Side]) -> dict[str, Any]:
    from vllm_std.tools.bench.report import ratios

    plain, std = (found[side] for side in SIDES)
    said: dict[str, Any] = {
        "clients": len(clients.questions), "turns": clients.turns,
        **ratios("times_faster", list(zip(std.rates, plain.rates))),
        "tokens_per_second": {side: statistics.median(found[side].rates) for side in SIDES},
        "answers_equal": sum(one.text == other.text for one, other in zip(plain.answers, std.answers)),
    }  # fmt: skip
    if any(question.right for question in clients.questions):
        said["answers_right"] = {
            side: sum(map(Answer.is_right, found[side].answers, clients.questions)) for side in SIDES
        }
    return said


def sentence(said: dict[str, Any]) -> str:
    low, high = said["times_faster_range"]
    plain, std = (said["tokens_per_second"][side] for side in SIDES)
    text = f"{said['clients']} clients at once: std is {said['times_faster']:.2f} times as fast as plain vLLM "
    text += f"({low:.2f} to {high:.2f} in {said['turns']} turns; {std:.0f} tokens/s, plain {plain:.0f}). "
    text += f"{said['answers_equal']} of {said['clients']} answers are word for word plain vLLM's"
    if "answers_right" in said:
        text += f"; {said['answers_right']['std']} of std's are right, {said['answers_right']['plain']} of plain vLLM's"
    return f"{text}."
