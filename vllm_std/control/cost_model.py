"""The cost model: seconds of a step, by draft length, requests and cached tokens.

    dense pass   base(tokens) + per_kv * cached tokens + windows * requests     verifying is the same over more tokens
    selection    base(requests) + select_per_kv * cached tokens
    draft step   base(requests)                                 a mask is as long for every request, and so is a window

Measured when the engine starts (`fitting.fit`) or estimated (`roofline.estimate`), and corrected by the steps that it
predicts, apart for each region of batch size and cached tokens.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

MIN_WEIGHT = 0.05  # least weight of a measured step in its correction, an average
MAX_ERROR = 0.3  # most that a measured step is believed to differ from its prediction, as a share of that
MIN_FACTOR = 0.1  # least that a part of a step takes, as a share of what is tabulated

Region = tuple[int, int]


@dataclass
class CostModel:
    """Seconds. dense: by `tokens` in a pass; draft, select: by `batch`, in requests; both grids ascend.

    windows: to read the sliding windows of a request, in the layers that have one; part of `draft`, not of `dense`.
    source: where the figures come from, for the log.
    corrections: by kind of step ("plain", "draft", "mixed") and region: means of measured over tabulated seconds and of
    the share of these that drafting adds, and the number of steps.
    """

    tokens: list[int]
    dense: list[float]
    batch: list[int]
    draft: list[float]
    select: list[float]
    per_kv: float
    select_per_kv: float
    source: str
    corrections: dict[str, list[float]] = field(default_factory=dict)
    windows: float = 0.0

    def dense_pass(self, tokens: int, kv: int, requests: int | None = None) -> float:
        """Seconds of a pass over so many tokens of `requests`, which attend to `kv` cached tokens in all. Without
        `requests`, each token is of another request."""
        windows = self.windows * (tokens if requests is None else requests)
        return _interpolate(tokens, self.tokens, self.dense) + self.per_kv * kv + windows

    def tabulated(self, length: int, batch: int, kv: int, steps: int | None = None) -> float:
        """Seconds of a step without corrections. Length 0 is a plain step.

        steps: draft steps, else one for each draft.
        """
        if not length:
            return self.dense_pass(batch, kv)
        verify = self.dense_pass(batch * (1 + length), kv, batch)
        select = _interpolate(batch, self.batch, self.select) + self.select_per_kv * kv
        drafts = length if steps is None else steps
        return verify + select + drafts * _interpolate(batch, self.batch, self.draft)

    def predict(
        self,
        lengths: Sequence[int] | np.ndarray,
        batch: int,
        kv: int,
        mixed: bool = False,
        steps: Sequence[int] | np.ndarray | None = None,
    ) -> np.ndarray:
        """[rounds] seconds of a step, corrected by what steps took.

        mixed: some requests opted out. steps: draft steps of each draft length, else one for each draft.

        A mixed batch is tabulated as if all its requests had drafts. It verifies fewer tokens, but many attention
        backends have no full CUDA graph for it, so it has a correction of its own.
        """
        plain_seconds = self.tabulated(0, batch, kv)
        each = zip(lengths, lengths if steps is None else steps)
        seconds = np.array([self.tabulated(length, batch, kv, count) for length, count in each])
        plain_factor, draft_factor = self._factors("mixed" if mixed else "draft", batch, kv)
        return plain_factor * plain_seconds + draft_factor * (seconds - plain_seconds)

    def correct(
        self, length: int, batch: int, kv: int, seconds: float, mixed: bool = False, draft_steps: int | None = None
    ) -> None:
        """Learn from a measured step. One that stalled for other reasons moves the means a little only."""
        kind = ("mixed" if mixed else "draft") if length else "plain"
        key = _key(kind, region(batch, kv))
        tabulated = self.tabulated(length, batch, kv, draft_steps)
        steps = None if draft_steps is None else [draft_steps]
        added = 1 - self.tabulated(0, batch, kv) / tabulated
        expected = float(self.predict([length], batch, kv, mixed, steps)[0])
        believed = min(max(seconds, (1 - MAX_ERROR) * expected), (1 + MAX_ERROR) * expected)
        ratio, share, count = self.corrections.get(key, (0.0, 0.0, 0.0))
        weight = max(1 / (count + 1), MIN_WEIGHT)
        ratio += weight * (believed / tabulated - ratio)
        share += weight * (added - share)
        self.corrections[key] = [ratio, share, count + 1]

    def has_measured(self, kind: str, batch: int, kv: int) -> bool:
        """Whether such steps were measured in the region of this batch."""
        return _key(kind, region(batch, kv)) in self.corrections

    def _factors(self, kind: str, batch: int, kv: int) -> tuple[float, float]:
        """Measured over tabulated seconds: of plain steps, and of what drafting adds to them."""
        here = region(batch, kv)
        plain_factor = self._mean("plain", self._nearest("plain", here))[0]
        measured_in = self._nearest(kind, here)
        ratio, share = self._mean(kind, measured_in)
        if not share:  # no such step was measured
            return plain_factor, self._factors("draft", batch, kv)[1] if kind == "mixed" else 1.0
        plain_there = self._mean("plain", self._nearest("plain", measured_in))[0]
        return plain_factor, max((ratio - plain_there * (1 - share)) / share, MIN_FACTOR)

    def _mean(self, kind: str, where: Region) -> tuple[float, float]:
        """Ratio and share of the correction of a region; 1 and 0 where nothing was measured there."""
        ratio, share, _ = self.corrections.get(_key(kind, where), (1.0, 0.0, 0.0))
        return ratio, share

    def _nearest(self, kind: str, where: Region) -> Region:
        """The region nearest to this one in which such steps were measured; itself where none were anywhere."""
        measured = [key.split("/") for key in self.corrections if key.startswith(kind)]
        regions = [(int(batch), int(kv)) for _, batch, kv in measured]
        return min(regions, key=lambda one: abs(one[0] - where[0]) + abs(one[1] - where[1]), default=where)


def region(batch: int, kv: int) -> Region:
    """What shares a correction: requests within a factor of two, and so cached tokens, counted in 4,096."""
    return batch.bit_length(), (kv >> 12).bit_length()


def _key(kind: str, where: Region) -> str:
    batch, kv = where
    return f"{kind}/{batch}/{kv}"


def _interpolate(x: int, xs: list[int], ys: list[float]) -> float:
    """Linear between points, constant outside them."""
    right = bisect_left(xs, x)
    if right in (0, len(xs)):
        return ys[0 if right == 0 else -1]
    left = right - 1
    return ys[left] + (ys[right] - ys[left]) * (x - xs[left]) / (xs[right] - xs[left])
