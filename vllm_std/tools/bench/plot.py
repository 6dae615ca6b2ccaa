"""The picture of a comparison."""

from pathlib import Path

from matplotlib.figure import Figure

LABELS = {"speedup": "time per output token", "throughput_ratio": "output tokens per second"}


def save_plot(rows: list[dict], title: str, file: Path) -> None:
    """The two ratios by concurrency, as PNG; above 1, std is faster."""
    figure = Figure((6, 4), layout="constrained")
    axes = figure.subplots()
    concurrency = [row["concurrency"] for row in rows]
    for name, label in LABELS.items():
        axes.plot(concurrency, [row[name] for row in rows], marker="o", label=label)
    axes.axhline(1, color="gray", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_xticks(concurrency, map(str, concurrency))
    axes.set(title=title, xlabel="requests at a time", ylabel="speed of std, plain vLLM being 1")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=150)
