"""What each draft length is expected to do for a batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vllm_std.control.cost_model import CostModel
from vllm_std.control.estimator import AcceptanceEstimator


@dataclass(frozen=True)
class Forecast:
    """Arrays are by draft length, from plain decoding up.

    steps: draft steps of a round.
    seconds: of a step.
    tokens: of a request in a step. This is the harmonic mean over the requests, because the time that a request waits
        for a token counts: requests whose drafts are rejected are not slowed down for the sake of the others.
    gain: log of the expected speed over that of plain decoding.
    highest_gain: the gain if all drafts were accepted.
    speedup: tokens/s of the batch, over those of plain decoding.
    plain_measured: whether plain steps of such a batch were measured.
    """

    steps: Sequence[int]
    seconds: np.ndarray
    tokens: np.ndarray
    gain: np.ndarray
    highest_gain: np.ndarray
    speedup: np.ndarray
    plain_measured: bool

    @property
    def best(self) -> int:
        """Place of the draft length with the highest gain; plain decoding is none of them."""
        return 1 + int(self.gain[1:].argmax())

    @property
    def shortest(self) -> int:
        """Place of the shortest draft length that should not lose; of the shortest of all where each should."""
        return 1 + int((self.gain[1:] > 0).argmax())

    def loss(self, place: int, tokens: float = 1.0) -> float:
        """Seconds that a step of this draft length loses if it gives each request so many tokens."""
        return float(self.seconds[place] - tokens * self.seconds[0])


def forecast(
    costs: CostModel,
    estimator: AcceptanceEstimator,
    lengths: np.ndarray,
    steps: Sequence[int],
    drafting: Sequence[str],
    batch: int,
    kv: int,
) -> Forecast:
    """lengths: draft lengths, ascending from 0; steps: draft steps of each; drafting: requests of the batch that have
    not opted out; batch: number of requests; kv: their cached tokens in all."""
    opted_out = batch - len(drafting)
    seconds = costs.predict(lengths, batch, kv, opted_out > 0, steps)
    relative = seconds / seconds[0]
    expected = estimator.tokens(drafting)[:, lengths]
    tokens = batch / ((1 / expected).sum(axis=0) + opted_out)
    highest = batch / (len(drafting) / (1 + lengths) + opted_out)
    return Forecast(
        steps=steps,
        seconds=seconds,
        tokens=tokens,
        gain=np.log(tokens / relative),
        highest_gain=np.log(highest / relative),
        speedup=(expected.sum(axis=0) + opted_out) / batch / relative,
        plain_measured=costs.has_measured("plain", batch, kv),
    )
