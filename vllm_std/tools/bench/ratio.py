"""How many times as fast one side is as another: paired turns, because a machine's speed changes by the second."""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Ratio:
    """Of paired turns: the median of their ratios, the lowest and the highest."""

    median: float
    lowest: float
    highest: float

    def __str__(self) -> str:
        return f"{self.median:.2f}x ({self.lowest:.2f} to {self.highest:.2f})"

    def markdown(self) -> str:
        """The same, the median in bold."""
        return f"**{self.median:.2f}x** ({self.lowest:.2f} to {self.highest:.2f})"

    def fields(self, name: str) -> dict[str, Any]:
        """For JSON; not rounded, because a ratio may be far below 1."""
        return {name: self.median, f"{name}_range": [self.lowest, self.highest]}


def ratio_of(values: list[float]) -> Ratio:
    """values: of each turn, at least one."""
    return Ratio(median(values), min(values), max(values))


def paired_ratio(pairs: Iterable[tuple[float, float]]) -> Ratio | None:
    """pairs: numerator and denominator of each turn. None where a turn has none of one, as the time per output token
    after the first has none with answers of one token."""
    turns = list(pairs)
    if not all(ours and theirs for ours, theirs in turns):
        return None
    return ratio_of([ours / theirs for ours, theirs in turns])
