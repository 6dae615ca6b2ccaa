"""Draw the picture of README: one round of sparse-to-dense decoding over the KV blocks of a request.

python scripts/bench/picture.py        # writes docs/round.png
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.patches import Rectangle  # noqa: E402

SINK, KEPT, RECENT, DRAFT, LEFT_OUT = "#4c78a8", "#f58518", "#54a24b", "#e45756", "#e8e8e8"
BLOCKS, CHOSEN, TAIL = 22, (4, 5, 11, 16), (19, 20)
ROWS = (
    ("1  target, dense pass", "reads every block; verifies the drafts, writes their true K/V"),
    ("2  select", "queries of the tokens just verified score the blocks; the best K stay"),
    ("3  draft, gamma steps", "the same model reads the mask only; K/V go to reserved slots"),
)


def color(row: int, block: int) -> str:
    if block == BLOCKS - 1:
        return DRAFT if row != 1 else LEFT_OUT
    if row == 0:
        return "#9ecae9"
    if block == 0:
        return SINK
    return KEPT if block in CHOSEN else RECENT if block in TAIL else LEFT_OUT


def main() -> None:
    figure, axes = plt.subplots(figsize=(10, 3.4), dpi=150)
    for row, (name, what) in enumerate(ROWS):
        top = 2 - row
        for block in range(BLOCKS):
            axes.add_patch(Rectangle((block, top), 0.9, 0.42, facecolor=color(row, block), edgecolor="white"))
        axes.text(0, top + 0.52, name, fontsize=10, weight="bold")
        axes.text(6.2, top + 0.52, what, fontsize=9, color="#444444")
    legend = (
        (SINK, "sink"),
        (KEPT, "top-K blocks"),
        (RECENT, "recent window"),
        (DRAFT, "drafted tail"),
        (LEFT_OUT, "left out"),
    )
    for place, (fill, text) in enumerate(legend):
        axes.add_patch(Rectangle((4.4 * place, -0.62), 0.6, 0.28, facecolor=fill))
        axes.text(4.4 * place + 0.8, -0.57, text, fontsize=9)
    axes.set_xlim(-0.2, BLOCKS + 0.2)
    axes.set_ylim(-0.8, 2.9)
    axes.axis("off")
    figure.tight_layout()
    figure.savefig(Path(__file__).parents[2] / "docs/round.png")


if __name__ == "__main__":
    main()
