"""Fits a cost model to measured steps."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from vllm_std.control.cost_model import CostModel


@dataclass(frozen=True)
class Point:
    """A measured step: `batch` requests with `kv` cached tokens in all verify `length` drafts each and draft as many
    again (0 is a plain step); `seconds`: from the outcome of one such step to that of the next."""

    batch: int
    kv: int
    length: int
    seconds: float


def fit(points: Iterable[Point], source: str, windows: float = 0.0) -> CostModel:
    """Least squares in relative error over measured steps; plain ones of every batch size must be among them, and
    of at least two context lengths for one of them. What verifying takes beyond the most tokens of a plain step
    counts as selection and drafting. windows: is not measured, but given."""
    points = [replace(p, seconds=max(p.seconds - p.batch * windows, 0.1 * p.seconds)) for p in points]
    batch = sorted({p.batch for p in points})
    rows = np.stack([_fitted_parts(p, batch) for p in points])
    # Cached tokens come in ten thousands, so their columns are scaled to the size of the others.
    scale = np.maximum(rows.max(axis=0), 1.0)
    relative = rows / scale / np.array([[p.seconds] for p in points])
    parts = np.linalg.lstsq(relative, np.ones(len(points)), rcond=None)[0].clip(min=0) / scale
    dense, draft, select = parts[:-2].reshape(3, len(batch))
    dense = np.maximum.accumulate(dense)  # noise may say that more tokens take less time
    per_kv, select_per_kv = parts[-2:].tolist()
    return CostModel(
        tokens=batch,
        dense=dense.tolist(),
        batch=batch,
        draft=draft.tolist(),
        select=select.tolist(),
        per_kv=per_kv,
        select_per_kv=select_per_kv,
        source=source,
        windows=windows,
    )


def _fitted_parts(point: Point, batch: list[int]) -> np.ndarray:
    """How often each part of a cost model is in a measured step: `dense`, `draft` and `select` by batch size, then
    `per_kv` and `select_per_kv`."""
    tokens = point.batch * (1 + point.length)
    dense = [np.interp(tokens, batch, one) for one in np.eye(len(batch))]
    drafts = point.length * np.equal(batch, point.batch)
    selections = min(point.length, 1) * np.equal(batch, point.batch)
    return np.array([*dense, *drafts, *selections, point.kv, min(point.length, 1) * point.kv], dtype=float)
