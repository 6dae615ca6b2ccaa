"""What each round of drafts is expected to do for a batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vllm_std.control.cost_model import CostModel
from vllm_std.control.estimator import AcceptanceEstimator


@dataclass(frozen=True)
class Rounds:
    """The rounds to choose from, by draft length; the first is plain decoding. Arrays, alike in length.

    lengths: drafts that are verified of each request.
    steps: draft steps, at most one for each draft; fewer may do where proposals come true.
    """

    lengths: np.ndarray
    steps: np.ndarray


def rounds_of(lengths: Sequence[int], proposals: int) -> Rounds:
    """All rounds of these draft lengths, ascending from 0. proposals: tokens proposed for a draft step; without any,
    each draft takes a step."""
    fewest = [min(1, length) if proposals else length for length in lengths]
    rounds = [(length, steps) for length, least in zip(lengths, fewest) for steps in range(least, length + 1)]
    return Rounds(*np.array(rounds).T)


@dataclass(frozen=True)
class Forecast:
    """Arrays are by round.

    seconds: of a step.
    tokens: of a request in a step. This is the harmonic mean over the requests, because the time that a request waits
        for a token counts: requests whose drafts are rejected are not slowed down for the sake of the others.
    gain: log of the expected speed over that of plain decoding.
    highest_gain: the gain if all drafts were accepted.
    speedup: tokens/s of the batch, over those of plain decoding.
    plain_measured: whether plain steps of such a batch were measured.
    """

    seconds: np.ndarray
    tokens: np.ndarray
    gain: np.ndarray
    highest_gain: np.ndarray
    speedup: np.ndarray
    plain_measured: bool

    @property
    def best(self) -> int:
        """Place of the round with the highest gain; plain decoding is none of them."""
        return 1 + int(self.gain[1:].argmax())

    @property
    def shortest(self) -> int:
        """Place of the shortest round that should not lose; of the shortest of all where each should."""
        return 1 + int((self.gain[1:] > 0).argmax())

    def loss(self, place: int, tokens: float = 1.0) -> float:
        """Seconds that a step of this round loses if it gives each request so many tokens."""
        return float(self.seconds[place] - tokens * self.seconds[0])


def forecast(
    costs: CostModel,
    estimator: AcceptanceEstimator,
    rounds: Rounds,
    drafts: np.ndarray,
    drafting: Sequence[str],
    batch: int,
    kv: int,
) -> Forecast:
    """drafts: [2, rounds] that a request is expected to be given, and at most; what else fills a draft length is taken
    to be rejected. drafting: requests of the batch that have not opted out; batch: number of requests; kv: their cached
    tokens in all."""
    opted_out = batch - len(drafting)
    seconds = costs.predict(rounds.lengths, batch, kv, opted_out > 0, rounds.steps)
    relative = seconds / seconds[0]
    expected = _between(estimator.tokens(drafting), drafts[0])
    tokens = batch / ((1 / expected).sum(axis=0) + opted_out)
    highest = batch / (len(drafting) / (1 + drafts[1]) + opted_out)
    return Forecast(
        seconds=seconds,
        tokens=tokens,
        gain=np.log(tokens / relative),
        highest_gain=np.log(highest / relative),
        speedup=(expected.sum(axis=0) + opted_out) / batch / relative,
        plain_measured=costs.has_measured("plain", batch, kv),
    )


def _between(tokens: np.ndarray, drafts: np.ndarray) -> np.ndarray:
    """[requests, rounds] expected tokens, linear between whole numbers of drafts; tokens: by number of drafts."""
    below = drafts.astype(int)
    above = np.minimum(below + 1, tokens.shape[1] - 1)
    return tokens[:, below] + (drafts - below) * (tokens[:, above] - tokens[:, below])
