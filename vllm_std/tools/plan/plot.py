"""The map: the best predicted speed-up over batch x context, with the region outlined where std wins."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from vllm_std.tools.plan.limits import memory_need
from vllm_std.tools.plan.predict import fastest, predictions
from vllm_std.tools.plan.workload import Workload

MOST_REQUESTS = 256  # of the map, unless twice the batch that was asked for is more
CONTEXTS = (1024, 131072)  # tokens at the ends of the map, grown to hold the context that was asked for
POINTS = 33  # of each axis


def save_map(workload: Workload, title: str, file: Path) -> None:
    """Write the picture as PNG."""
    batches, contexts, speedups = speedup_grid(workload)
    figure = Figure((6.4, 4.6), layout="constrained")
    axes = figure.subplots()
    norm = TwoSlopeNorm(1.0, min(0.5, speedups.min()), max(2.0, speedups.max()))
    mesh = axes.pcolormesh(batches, contexts, speedups, cmap="RdBu", norm=norm, shading="nearest")
    figure.colorbar(mesh, label="best predicted speed-up over plain decoding")
    if speedups.min() < 1 < speedups.max():
        axes.contour(batches, contexts, speedups, levels=[1.0], colors="black", linewidths=2)
    fits = [memory_need(replace(workload, context=int(context)))["largest_batch"] for context in contexts]
    axes.plot(fits, contexts, color="gray", linestyle="--", label="the KV cache is full")
    axes.scatter(workload.batch, workload.context, marker="*", s=144, color="black", label="asked for")
    _scale(axes, batches, contexts)
    axes.set(xlabel="batch, requests", ylabel="context, tokens", title=f"{title} (black: std wins above)")
    axes.legend(loc="lower left", fontsize=8)
    figure.savefig(file, dpi=150)


def speedup_grid(workload: Workload) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[batches], [contexts], and [contexts, batches] of the best predicted speed-up; 1 where nothing can be masked."""
    batches = _spaced(1, max(MOST_REQUESTS, 2 * workload.batch))
    shortest, longest = CONTEXTS
    contexts = _spaced(max(1, min(shortest, workload.context // 2)), max(longest, 2 * workload.context))
    speedups = np.ones((len(contexts), len(batches)))
    for row, context in enumerate(contexts):
        for column, batch in enumerate(batches):
            best = fastest(predictions(replace(workload, batch=int(batch), context=int(context))))
            speedups[row, column] = best.speedup if best else 1.0
    return batches, contexts, speedups


def _spaced(first: int, last: int) -> np.ndarray:
    """Whole numbers in equal ratios."""
    return np.unique(np.geomspace(first, last, POINTS).round().astype(int))


def _scale(axes: Axes, batches: np.ndarray, contexts: np.ndarray) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set(xlim=(batches[0], batches[-1]), ylim=(contexts[0], contexts[-1]))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:,.0f}")
