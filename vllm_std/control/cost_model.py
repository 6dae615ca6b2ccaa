"""The cost model: seconds of a step, by draft length, requests and cached tokens.

    dense pass   base(tokens) + per_kv * cached tokens + windows * requests     verifying is the same over more tokens
    selection    base(requests) + select_per_kv * cached tokens
    draft step   base(requests)                                 a mask is as long for every request, and so is a window

Measured when the engine starts (`fit`) or estimated (`roofline.estimate`), and corrected by the steps that it predicts,
apart for each region of batch size and cached tokens.
"""

import json
import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from uuid import uuid4

import numpy as np

MIN_WEIGHT = 0.05  # least weight of a measured step in its correction, an average
MAX_ERROR = 0.3  # most that a measured step is believed to differ from its prediction, as a share of that
MIN_FACTOR = 0.1  # least that a part of a step takes, as a share of what the table says


@dataclass(frozen=True)
class Point:
    """A measured step: `batch` requests with `kv` cached tokens in all verify `length` drafts each and draft as many
    again (0 is a plain step); `seconds`: from the outcome of one such step to that of the next."""

    batch: int
    kv: int
    length: int
    seconds: float


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

    @classmethod
    def fit(cls, points: Iterable[Point], source: str, windows: float = 0.0) -> "CostModel":
        """Least squares in relative error over measured steps; plain ones of every batch size must be among them, and
        of at least two context lengths for one of them. What verifying takes beyond the most tokens of a plain step
        counts as selection and drafting. windows: is not measured, but given."""
        points = [replace(p, seconds=max(p.seconds - p.batch * windows, 0.1 * p.seconds)) for p in points]
        batch = sorted({p.batch for p in points})
        starts = np.cumsum([len(batch)] * 3 + [1])
        rows = np.zeros((len(points), starts[-1] + 1))
        for row, p in zip(rows, points):
            at = np.array([p.batch == size for size in batch], dtype=float)
            tokens = p.batch * (1 + p.length)
            row[: starts[0]] = [np.interp(tokens, batch, one) for one in np.eye(len(batch))]
            row[starts[2]] = p.kv
            if p.length:
                row[starts[0] : starts[1]], row[starts[1] : starts[2]], row[starts[3]] = at * p.length, at, p.kv
        # Cached tokens come in ten thousands, so their columns are scaled to the size of the others.
        scale = np.maximum(rows.max(axis=0), 1.0)
        weighted = rows / scale / np.array([[p.seconds] for p in points])
        found = np.linalg.lstsq(weighted, np.ones(len(points)), rcond=None)[0] / scale
        dense, draft, select, per_kv, select_per_kv = (part.tolist() for part in np.split(found.clip(min=0), starts))
        dense = np.maximum.accumulate(dense).tolist()  # noise may say that more tokens take less time
        return cls(batch, dense, batch, draft, select, per_kv[0], select_per_kv[0], source, windows=windows)

    def dense_pass(self, tokens: int, kv: int, requests: int | None = None) -> float:
        """Seconds of a pass over so many tokens of `requests`, which attend to `kv` cached ones in all; each of another
        request where nothing else is said."""
        windows = self.windows * (tokens if requests is None else requests)
        return _interpolate(tokens, self.tokens, self.dense) + self.per_kv * kv + windows

    def tabulated(self, length: int, batch: int, kv: int) -> float:
        """Seconds of a step without corrections. Length 0 is a plain step."""
        if not length:
            return self.dense_pass(batch, kv)
        verify = self.dense_pass(batch * (1 + length), kv, batch)
        select = _interpolate(batch, self.batch, self.select) + self.select_per_kv * kv
        return verify + select + length * _interpolate(batch, self.batch, self.draft)

    def predict(self, lengths: Sequence[int], batch: int, kv: int, mixed: bool = False) -> np.ndarray:
        """[lengths] seconds of a step by draft length, corrected by what steps took; mixed: some requests opted out.

        The table does not say what a mixed batch takes: it verifies fewer tokens, but not as many for each request, and
        for such batches many attention backends have no full CUDA graph. Its correction is measured by itself.
        """
        plain = self.tabulated(0, batch, kv)
        table = np.array([self.tabulated(length, batch, kv) for length in lengths])
        plain_factor, draft_factor = self._factors("mixed" if mixed else "draft", batch, kv)
        return plain_factor * plain + draft_factor * (table - plain)

    def correct(self, length: int, batch: int, kv: int, seconds: float, mixed: bool = False) -> None:
        """Take in a measured step; one that stalled for other reasons moves the averages a little only."""
        kind = ("mixed" if mixed else "draft") if length else "plain"
        table, plain = self.tabulated(length, batch, kv), self.tabulated(0, batch, kv)
        expected = float(self.predict([length], batch, kv, mixed)[0])
        believed = min(max(seconds, (1 - MAX_ERROR) * expected), (1 + MAX_ERROR) * expected)
        ratio, share, steps = self.corrections.get(_key(kind, batch, kv), (0.0, 0.0, 0.0))
        weight = max(1 / (steps + 1), MIN_WEIGHT)
        ratio += weight * (believed / table - ratio)
        share += weight * (1 - plain / table - share)
        self.corrections[_key(kind, batch, kv)] = [ratio, share, steps + 1]

    def has_measured(self, kind: str, batch: int, kv: int) -> bool:
        """Whether such steps were measured in the region of this batch."""
        return _key(kind, batch, kv) in self.corrections

    def _factors(self, kind: str, batch: int, kv: int) -> tuple[float, float]:
        """Measured over tabulated seconds: of plain steps, and of what drafting adds to them."""
        plain_factor = self._nearest("plain", *region(batch, kv))[0]
        ratio, share, *where = self._nearest(kind, *region(batch, kv))
        if not share:  # nothing was measured
            return plain_factor, self._factors("draft", batch, kv)[1] if kind == "mixed" else 1.0
        plain_there = self._nearest("plain", *where)[0]
        return plain_factor, max((ratio - plain_there * (1 - share)) / share, MIN_FACTOR)

    def _nearest(self, kind: str, batch: int, kv: int) -> tuple[float, float, int, int]:
        """The correction of the nearest region with measured steps: ratio, share, and the region; batch, kv: of one."""
        found = self.corrections.get(f"{kind}/{batch}/{kv}")
        if found is None:
            keys = [key.split("/")[1:] for key in self.corrections if key.startswith(kind)]
            if not keys:
                return 1.0, 0.0, batch, kv
            batch, kv = min(((int(b), int(k)) for b, k in keys), key=lambda at: abs(at[0] - batch) + abs(at[1] - kv))
            found = self.corrections[f"{kind}/{batch}/{kv}"]
        return found[0], found[1], batch, kv

    def save(self, path: Path) -> None:
        """Raises OSError where the file cannot be written; what was there then stays."""
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(f".{uuid4().hex}.new")  # other engines may be saving the same table, or reading it
        try:
            new.write_text(json.dumps(asdict(self), indent=1) + "\n")
            new.replace(path)
        except OSError:
            with suppress(OSError):
                new.unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: Path) -> "CostModel | None":
        """None where there is no such file, or one that is not a cost model."""
        try:
            model = cls(**json.loads(path.read_text()))
            return model if model._is_sound() else None
        except (OSError, TypeError, ValueError, AttributeError, RecursionError):
            return None

    def _is_sound(self) -> bool:
        """Whether it can be computed with; raises TypeError or AttributeError for some that cannot."""
        grids = (self.tokens, self.dense), (self.batch, self.draft), (self.batch, self.select)
        numbers = [self.per_kv, self.select_per_kv, self.windows]
        for key, (ratio, share, steps) in self.corrections.items():
            _, batch, kv = key.split("/")
            numbers += [ratio, share, steps, int(batch), int(kv)]
        numbers += [number for xs, ys in grids for number in (*xs, *ys)]
        finite = all(type(number) in (int, float) and math.isfinite(number) for number in numbers)
        ascend = all(xs and len(xs) == len(ys) and xs == sorted({*xs}) for xs, ys in grids)
        return finite and ascend and type(self.source) is str and min(self.dense) > 0


def region(batch: int, kv: int) -> tuple[int, int]:
    """What shares a correction: requests and cached tokens within a factor of two."""
    return batch.bit_length(), (kv >> 12).bit_length()


def _key(kind: str, batch: int, kv: int) -> str:
    return "/".join(map(str, (kind, *region(batch, kv))))


def _interpolate(x: int, xs: list[int], ys: list[float]) -> float:
    """Linear between points, constant outside them."""
    right = bisect_left(xs, x)
    if right in (0, len(xs)):
        return ys[0 if right == 0 else -1]
    left = right - 1
    return ys[left] + (ys[right] - ys[left]) * (x - xs[left]) / (xs[right] - xs[left])
