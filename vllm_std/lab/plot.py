"""acceptance.png: accepted share by K, a line for each policy; positions.png: by draft position, a panel for each K."""

from collections import defaultdict
from pathlib import Path

from vllm_std.lab.grid import show_k

SIZE = (6, 4)  # inches


def plot(summary: dict, out: Path) -> None:
    """Both pictures, from what `report.summarise` returns."""
    import matplotlib

    matplotlib.use("Agg")
    cells = [cell for cell in summary["cells"] if cell["acceptance"] is not None]
    if cells:
        _by_k(cells).savefig(out / "acceptance.png", dpi=150)
        _by_position(cells).savefig(out / "positions.png", dpi=150)


def _lines(cells: list[dict]) -> dict[str, list[dict]]:
    """Cells by policy, and by whatever else varies beside K."""
    varies = [name for name in ("gamma", "refresh", "temperature") if len({cell[name] for cell in cells}) > 1]
    lines = defaultdict(list)
    for cell in cells:
        lines[", ".join([cell["policy"], *(f"{name} {cell[name]:g}" for name in varies)])].append(cell)
    return lines


def _by_k(cells: list[dict]):
    from matplotlib.figure import Figure

    figure = Figure(SIZE, layout="constrained")
    axes = figure.subplots()
    for number, (label, those) in enumerate(_lines(cells).items()):
        shares = [cell["acceptance"] for cell in those]
        ends = [cell["interval"] or [cell["acceptance"]] * 2 for cell in those]
        # The interval of a bootstrap may lie to one side of the share.
        below = [max(0, share - low) for share, (low, _) in zip(shares, ends)]
        above = [max(0, high - share) for share, (_, high) in zip(shares, ends)]
        beside = [cell["k"] * 1.012**number for cell in those]  # so that error bars do not hide one another
        axes.errorbar(beside, shares, (below, above), label=label, marker="o", capsize=3)
    ks = sorted({cell["k"] for cell in cells})
    axes.set_xscale("log")
    axes.set_xticks(ks, [show_k(k) for k in ks], minor=False)
    axes.minorticks_off()
    axes.set(xlabel="K, of the context" if isinstance(ks[0], float) else "K, tokens", ylabel="accepted share of drafts")
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def _by_position(cells: list[dict]):
    from matplotlib.figure import Figure

    ks = sorted({cell["k"] for cell in cells})
    figure = Figure((3.2 * len(ks) + 1, SIZE[1]), layout="constrained")
    panels = figure.subplots(1, len(ks), sharey=True, squeeze=False)[0]
    for panel, k in zip(panels, ks):
        for label, those in _lines(cells).items():
            for cell in those:
                if cell["k"] == k:
                    shares = cell["acceptance_by_position"]
                    panel.plot(range(1, len(shares) + 1), shares, label=label, marker="o")
        panel.set(title=f"K = {show_k(k)}", xlabel="draft position", ylim=(0, 1.02))
        panel.set_xticks(range(1, max(cell["gamma"] for cell in cells) + 1))
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("accepted share of drafts at the position")
    panels[-1].legend()
    return figure
