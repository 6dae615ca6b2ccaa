"""What a step takes here and now, and how sure that is: the cost table, corrected by the steps it predicts.

Two parts of the table may be off, by a factor each: plain steps, and what drafting adds to them. A Kalman filter holds
both, so that plain steps which turn out cheaper than thought make drafting, timed along with them, dearer by as much.
A batch size or context not met before starts with the factors of the one before, less certain.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from vllm_std.control.costs import Costs

TABLE, ELSEWHERE = 0.15**2, 0.07**2  # variance of a factor: at first, and added at another batch size or context
DRIFT, NOISE = 0.001**2, 0.03**2  # variance added by each step, and of its measurement
JUMP = 0.3  # of a step's time: most that a measurement is believed to be off
LEAST = 0.1  # of the table's time


@dataclass
class Factors:
    """Measured over predicted seconds; the variances of both, and their covariance."""

    plain: float = 1.0
    more: float = 1.0
    plain_plain: float = TABLE
    more_more: float = TABLE
    both: float = 0.0

    def update(self, plain: float, more: float, seconds: float) -> None:
        """A step took so long, for which the table says plain + more."""
        table = plain + more
        plain, more, measured = plain / table, more / table, seconds / table
        self.plain_plain, self.more_more = self.plain_plain + DRIFT, self.more_more + DRIFT * (more > 0)
        to_plain = self.plain_plain * plain + self.both * more
        to_more = self.both * plain + self.more_more * more
        variance = plain * to_plain + more * to_more + NOISE
        error = believed(measured - plain * self.plain - more * self.more) / variance
        self.plain, self.more = max(self.plain + to_plain * error, LEAST), max(self.more + to_more * error, LEAST)
        self.plain_plain -= to_plain**2 / variance
        self.more_more -= to_more**2 / variance
        self.both -= to_plain * to_more / variance

    def elsewhere(self) -> "Factors":
        return replace(self, plain_plain=self.plain_plain + ELSEWHERE, more_more=self.more_more + ELSEWHERE)

    def doubts(self) -> tuple[float, float]:
        """Standard deviations of the logs of the plain factor, and of the ratio of both."""
        plain, more = self.plain_plain / self.plain**2, self.more_more / self.more**2
        both = self.both / self.plain / self.more
        return math.sqrt(plain), math.sqrt(max(plain + more - 2 * both, 0.0))


class Prices:
    """lengths: draft lengths, ascending from 0."""

    def __init__(self, costs: Costs, lengths: Sequence[int]):
        self.costs, self.lengths = costs, lengths
        self.regions: dict[tuple[int, int], Factors] = {}
        self.here = Factors()

    def _enter(self, batch: int, kv: int) -> Factors:
        key = region(batch, kv)
        if key not in self.regions:
            self.regions[key] = self._remember(self.here.elsewhere() if self.regions else Factors(), batch, kv)
        self.here = self.regions[key]
        return self.here

    def _remember(self, factors: Factors, batch: int, kv: int) -> Factors:
        """Start with what an earlier run of the server has left in the table."""
        costs, plain = self.costs, self.costs.table(0, batch, kv)
        if costs.measured(0, batch, kv):
            factors.plain = costs.round(0, batch, kv) / plain
        for length in self.lengths[1:]:
            more = costs.table(length, batch, kv) - plain
            if costs.measured(length, batch, kv) and more > 0:
                factors.more = max((costs.round(length, batch, kv) - factors.plain * plain) / more, LEAST)
        return factors

    def seconds(self, batch: int, kv: int, drafted: int) -> np.ndarray:
        """[lengths] of a step; drafted: requests of the batch that are drafted for."""
        here = self._enter(batch, kv)
        table = np.array([self.costs.table(length, batch, kv, drafted) for length in self.lengths])
        return here.plain * table[0] + here.more * (table - table[0])

    def measured(self, length: int, batch: int, kv: int, seconds: float, drafted: int) -> float:
        """Take in a step. Returns the seconds that drafting added to it beyond what was predicted."""
        here, plain = self._enter(batch, kv), self.costs.table(0, batch, kv)
        more = self.costs.table(length, batch, kv, drafted) - plain if length else 0.0
        added = here.more * more
        here.update(plain, more, seconds)
        expected = here.plain * plain + added
        return believed(seconds / expected - 1) * expected if length else 0.0


def region(batch: int, kv: int) -> tuple[int, int]:
    """What shares the factors: requests and cached tokens within a factor of two."""
    return batch.bit_length(), (kv >> 12).bit_length()


def believed(error: float) -> float:
    return max(-JUMP, min(JUMP, error))
