"""The map: the best predicted speed-up over batch x context, with the region outlined where std wins."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from vllm_std.tools.plan.limits import memory
from vllm_std.tools.plan.predict import Load, best_of, cells

BATCHES, CONTEXTS = 256, (1024, 131072)  # grown to hold the load that was asked for


def plot(load: Load, title: str, file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    _figure(load, title).savefig(file, dpi=150)


def grid(load: Load) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[batches], [contexts], and [contexts, batches] of the best predicted speed-up; 1 where nothing can be masked."""
    batches = np.unique(np.geomspace(1, max(BATCHES, 2 * load.batch), 33).round().astype(int))
    ends = min(CONTEXTS[0], load.context // 2), max(CONTEXTS[1], 2 * load.context)
    contexts = np.unique(np.geomspace(max(1, ends[0]), ends[1], 33).round().astype(int))
    found = np.ones((len(contexts), len(batches)))
    for row, context in enumerate(contexts):
        for column, batch in enumerate(batches):
            best = best_of(cells(replace(load, batch=int(batch), context=int(context))))
            found[row, column] = best.speedup if best else 1.0
    return batches, contexts, found


def _figure(load: Load, title: str):
    from matplotlib.colors import TwoSlopeNorm
    from matplotlib.figure import Figure

    batches, contexts, found = grid(load)
    figure = Figure((6.4, 4.6), layout="constrained")
    axes = figure.subplots()
    norm = TwoSlopeNorm(1.0, min(0.5, found.min()), max(2.0, found.max()))
    shown = axes.pcolormesh(batches, contexts, found, cmap="RdBu", norm=norm, shading="nearest")
    figure.colorbar(shown, label="best predicted speed-up over plain decoding")
    if found.min() < 1 < found.max():
        axes.contour(batches, contexts, found, levels=[1.0], colors="black", linewidths=2)
    fits = [memory(replace(load, context=int(context)))["largest_batch"] for context in contexts]
    axes.plot(fits, contexts, color="gray", linestyle="--", label="the KV cache is full")
    axes.plot(load.batch, load.context, marker="*", markersize=12, color="black", linestyle="none", label="asked for")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set(xlabel="batch, requests", ylabel="context, tokens", title=f"{title} (black: std wins above)")
    axes.set(xlim=(batches[0], batches[-1]), ylim=(contexts[0], contexts[-1]))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.legend(loc="lower left", fontsize=8)
    return figure
