"""The cost table: what a round takes, by draft length, requests and cached tokens.

    dense pass   base(tokens) + per_kv * cached tokens + windows * requests     verifying is the same over more tokens
    selection    base(requests) + select_per_kv * cached tokens
    draft step   base(requests)                                 a mask is as long for every request, and so is a window

Measured when the engine starts (`fit`), or estimated (`roofline.estimate`); corrected by the steps it predicts.
"""

import json
import math
from bisect import bisect_left
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from uuid import uuid4

import numpy as np

RATE, JUMP = 0.1, 0.3  # of a correction: share taken over from each step, and most it believes of one


@dataclass(frozen=True)
class Point:
    """A measured step: `batch` requests with `kv` cached tokens in all verify `length` drafts each and draft as many
    again (0 is a plain step); `seconds`: from the outcome of one such step to that of the next."""

    batch: int
    kv: int
    length: int
    seconds: float


@dataclass
class Costs:
    """Seconds. dense: by `tokens` in a pass; draft, select: by `batch`, in requests; both grids ascend.

    windows: to read the sliding windows of a request, in the layers that have one; part of `draft`, not of `dense`.
    source: where the figures come from, for the log. corrections: log of measured over predicted, by `_key`.
    """

    tokens: list[int]
    dense: list[float]
    batch: list[int]
    draft: list[float]
    select: list[float]
    per_kv: float
    select_per_kv: float
    source: str
    corrections: dict[str, float] = field(default_factory=dict)
    windows: float = 0.0

    @classmethod
    def fit(cls, points: Iterable[Point], source: str, windows: float = 0.0) -> "Costs":
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
        sizes = per_kv[0], select_per_kv[0], source
        return cls(batch, dense, batch, draft, select, *sizes, windows=windows)

    def dense_pass(self, tokens: int, kv: int, requests: int | None = None) -> float:
        """Seconds of a pass over so many tokens of `requests`, which attend to `kv` cached ones in all; each of another
        request where nothing else is said."""
        windows = self.windows * (tokens if requests is None else requests)
        return _at(tokens, self.tokens, self.dense) + self.per_kv * kv + windows

    def table(self, length: int, batch: int, kv: int, drafted: int | None = None) -> float:
        """Seconds of a round as it stands in the table; drafted: requests of the batch that are verified with drafts.
        Length 0 is a plain step."""
        if not length:
            return self.dense_pass(batch, kv)
        verify = self.dense_pass(batch + length * (batch if drafted is None else drafted), kv, batch)
        select = _at(batch, self.batch, self.select) + self.select_per_kv * kv
        return verify + select + length * _at(batch, self.batch, self.draft)

    def round(self, length: int, batch: int, kv: int, drafted: int | None = None) -> float:
        """The same, corrected by what such rounds took."""
        return self.table(length, batch, kv, drafted) * math.exp(self.corrections.get(_key(length, batch, kv), 0.0))

    def correct(self, length: int, batch: int, kv: int, seconds: float, drafted: int | None = None) -> None:
        """Take in a measured round; one that stalled for other reasons moves the table a little only."""
        key = _key(length, batch, kv)
        now = self.corrections.get(key, 0.0)
        seen = math.log(seconds / self.table(length, batch, kv, drafted))
        self.corrections[key] = now + RATE * max(-JUMP, min(JUMP, seen - now))

    def measured(self, length: int, batch: int, kv: int) -> bool:
        """Whether such rounds have been seen."""
        return _key(length, batch, kv) in self.corrections

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
    def load(cls, path: Path) -> "Costs | None":
        """None where there is no such file, or one that is not a cost table."""
        try:
            table = cls(**json.loads(path.read_text()))
            return table if table._is_sound() else None
        except (OSError, TypeError, ValueError, AttributeError, RecursionError):
            return None

    def _is_sound(self) -> bool:
        """Whether it can be computed with; raises TypeError or AttributeError for some that cannot."""
        grids = (self.tokens, self.dense), (self.batch, self.draft), (self.batch, self.select)
        numbers = [self.per_kv, self.select_per_kv, self.windows, *self.corrections.values()]
        numbers += [number for xs, ys in grids for number in (*xs, *ys)]
        finite = all(type(number) in (int, float) and math.isfinite(number) for number in numbers)
        ascend = all(xs and len(xs) == len(ys) and xs == sorted({*xs}) for xs, ys in grids)
        return finite and ascend and type(self.source) is str and min(self.dense) > 0


def _key(length: int, batch: int, kv: int) -> str:
    """Rounds that share a correction: the same draft length, batch and cached tokens within a factor of two."""
    return f"{length}/{batch.bit_length()}/{(kv >> 12).bit_length()}"


def _at(x: int, xs: list[int], ys: list[float]) -> float:
    """Linear between points, constant outside them."""
    right = bisect_left(xs, x)
    if right in (0, len(xs)):
        return ys[0 if right == 0 else -1]
    left = right - 1
    return ys[left] + (ys[right] - ys[left]) * (x - xs[left]) / (xs[right] - xs[left])
