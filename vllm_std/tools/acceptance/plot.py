"""Pictures of a summary, with a line for each policy.

acceptance.png: accepted share of drafts, by K. positions.png and tokens.png, by draft position, with a panel for each
K: what is accepted where all before it were, and tokens of a round that ends there.
"""

from collections import defaultdict
from pathlib import Path

from matplotlib.figure import Figure

from vllm_std.tools.acceptance.grid import show_k

SIZE = (6, 4)  # inches of a picture with one panel


def save_plots(summary: dict, out: Path) -> None:
    """All pictures, from what `summary.summarise` returns, as PNG in the folder `out`."""
    cells = [cell for cell in summary["cells"] if cell["acceptance"] is not None]
    if cells:
        _by_k(cells).savefig(out / "acceptance.png", dpi=150)
        says = "accepted where all before it were"
        _by_position(cells, "acceptance", "interval", says).savefig(out / "positions.png", dpi=150)
        says = "tokens of a round that ends there"
        _by_position(cells, "tokens", "tokens_interval", says).savefig(out / "tokens.png", dpi=150)


def _lines(cells: list[dict]) -> dict[str, list[dict]]:
    """Cells by policy, and by whatever else varies beside K."""
    varies = [name for name in ("gamma", "refresh", "temperature") if len({cell[name] for cell in cells}) > 1]
    lines = defaultdict(list)
    for cell in cells:
        lines[", ".join([cell["policy"], *(f"{name} {cell[name]:g}" for name in varies)])].append(cell)
    return lines


def _by_k(cells: list[dict]) -> Figure:
    figure = Figure(SIZE, layout="constrained")
    axes = figure.subplots()
    for number, (label, those) in enumerate(_lines(cells).items()):
        shares = [cell["acceptance"] for cell in those]
        errors = _errors(shares, [cell["interval"] for cell in those])
        beside = [cell["k"] * 1.012**number for cell in those]  # so that error bars do not hide one another
        axes.errorbar(beside, shares, errors, label=label, marker="o", capsize=3)
    ks = sorted({cell["k"] for cell in cells})
    axes.set_xscale("log")
    axes.set_xticks(ks, [show_k(k) for k in ks], minor=False)
    axes.minorticks_off()
    axes.set(xlabel="K, of the context" if isinstance(ks[0], float) else "K, tokens", ylabel="accepted share of drafts")
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def _errors(values: list[float], intervals: list[list[float] | None]) -> tuple[list[float], list[float]]:
    """What lies below and above each value; the interval of a bootstrap may lie to one side of it."""
    ends = [interval or [value] * 2 for value, interval in zip(values, intervals)]
    below = [max(0, value - low) for value, (low, _) in zip(values, ends)]
    return below, [max(0, high - value) for value, (_, high) in zip(values, ends)]


def _by_position(cells: list[dict], name: str, interval: str, says: str) -> Figure:
    ks = sorted({cell["k"] for cell in cells})
    figure = Figure((3.2 * len(ks) + 1, SIZE[1]), layout="constrained")
    panels = figure.subplots(1, len(ks), sharey=True, squeeze=False)[0]
    for panel, k in zip(panels, ks):
        for label, those in _lines(cells).items():
            for cell in those:
                known = [at for at in cell["positions"] if at[name] is not None and cell["k"] == k]
                values = [at[name] for at in known]
                errors = _errors(values, [at[interval] for at in known])
                if known:
                    panel.errorbar(range(1, len(known) + 1), values, errors, label=label, marker="o", capsize=2)
        panel.set(title=f"K = {show_k(k)}", xlabel="draft position")
        panel.set_xticks(range(1, max(cell["gamma"] for cell in cells) + 1))
        panel.grid(alpha=0.3)
    panels[0].set_ylim(0, 1.02 if name == "acceptance" else None)
    panels[0].set_ylabel(says)
    panels[-1].legend()
    return figure
