"""Several clients at once ask about one long video: tokens per second through plain vLLM and through std.

The video is in the prefix cache of both servers before anything is timed, so what is timed is decoding. The sides take
turns, because how fast a machine is changes from one second to the next.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

from vllm_std.tools.bench.ratio import ratio_of
from vllm_std.tools.bench.sides import PLAIN, SIDES, STD, ServerOf, turns
from vllm_std.tools.demo.ask import Answer, Ask, Question, asker

ShowTokens = Callable[[int], None]  # told of the tokens of a turn so far
Watch = Callable[[str], AbstractContextManager[ShowTokens]]  # side: whatever shows one of its turns


@dataclass(frozen=True)
class Clients:
    """questions: one of each client; tokens: most of an answer; turns: of each side."""

    questions: list[Question]
    tokens: int
    turns: int


@dataclass
class SideTurns:
    """seconds, tokens: of each turn, of all its answers; answers: of the last turn."""

    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)

    @property
    def rates(self) -> list[float]:
        """Tokens per second of each turn."""
        return [tokens / seconds for tokens, seconds in zip(self.tokens, self.seconds)]

    def take(self, ask: Ask, clients: Clients, watched: AbstractContextManager[ShowTokens]) -> None:
        """A turn."""
        with watched as show:
            begun = time.perf_counter()
            self.answers = asyncio.run(_ask_all(ask, clients, show))
            self.seconds.append(time.perf_counter() - begun)
        self.tokens.append(sum(answer.tokens for answer in self.answers))


def take_turns(clients: Clients, server_of: ServerOf, at_once: bool, watch: Watch) -> dict[str, SideTurns]:
    """What each side did. at_once: whether both servers fit the machine; else std's starts when plain's has ended.

    Raises ValueError where a server does not start.
    """
    taken = {side: SideTurns() for side in SIDES}
    for together in [SIDES] if at_once else [[side] for side in SIDES]:
        with ExitStack() as stack:
            asks = {side: asker(stack.enter_context(server_of(side))) for side in together}
            for side in together:
                _warm_up(asks[side], clients)
            for _, side in turns(clients.turns):
                if side in asks:
                    taken[side].take(asks[side], clients, watch(side))
    return taken


def _warm_up(ask: Ask, clients: Clients) -> None:
    """One asks alone, for a word: the server computes the video, and keeps it in its caches."""
    asyncio.run(ask(clients.questions[0], 1, lambda *_: None))


async def _ask_all(ask: Ask, clients: Clients, show: ShowTokens) -> list[Answer]:
    tokens_so_far = [0] * len(clients.questions)

    def on_text(client: int, piece: str, tokens: int) -> None:
        tokens_so_far[client] = tokens
        show(sum(tokens_so_far))

    asked = enumerate(clients.questions)
    each = (ask(question, clients.tokens, partial(on_text, client), known=True) for client, question in asked)
    return await asyncio.gather(*each)


def summarise(clients: Clients, taken: dict[str, SideTurns]) -> dict[str, Any]:
    """For JSON."""
    plain, std = taken[PLAIN], taken[STD]
    summary: dict[str, Any] = {
        "clients": len(clients.questions),
        "turns": clients.turns,
        **ratio_of([ours / theirs for ours, theirs in zip(std.rates, plain.rates)]).fields("times_faster"),
        "tokens_per_second": {side: median(taken[side].rates) for side in SIDES},
        "answers_equal": sum(one.text == other.text for one, other in zip(plain.answers, std.answers)),
    }
    if any(question.right for question in clients.questions):
        summary["answers_right"] = {
            side: sum(map(Answer.is_right, taken[side].answers, clients.questions)) for side in SIDES
        }
    return summary


def sentence(summary: dict[str, Any]) -> str:
    low, high = summary["times_faster_range"]
    plain, std = (summary["tokens_per_second"][side] for side in SIDES)
    text = f"{summary['clients']} clients at once: std is {summary['times_faster']:.2f} times as fast as plain vLLM "
    text += f"({low:.2f} to {high:.2f} in {summary['turns']} turns; {std:.0f} tokens/s, plain {plain:.0f}). "
    text += f"{summary['answers_equal']} of {summary['clients']} answers are word for word plain vLLM's"
    if "answers_right" in summary:
        right = summary["answers_right"]
        text += f"; {right[STD]} of std's are right, {right[PLAIN]} of plain vLLM's"
    return f"{text}."
