"""What a comparison found: rows for programs, a table, a picture."""

from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table

from vllm_std.tools.bench.run import Found


def rows(found: Found) -> list[dict[str, Any]]:
    """One for each concurrency. throughput_ratio: output tokens per second of std over those of plain; speedup: time
    per output token of plain over that of std, medians over requests. Each is the median over repeats, of ratios of one
    repeat, and has its lowest and highest value as `..._range`."""
    return [_row(concurrency, plain, found["std"][concurrency]) for concurrency, plain in found["plain"].items()]


def _row(concurrency: int, plain: list[dict], std: list[dict]) -> dict[str, Any]:
    answers = [pair for a, b in zip(plain, std) for pair in zip(a["generated_texts"], b["generated_texts"])]
    drafted, accepted = (sum(run.get(f"spec_decode_{what}_tokens", 0) for run in std) for what in ("draft", "accepted"))
    lengths = [run["spec_decode_acceptance_length"] for run in std if run.get("spec_decode_draft_tokens")]
    return {
        "concurrency": concurrency,
        **ratios("throughput_ratio", [(b["output_throughput"], a["output_throughput"]) for a, b in zip(plain, std)]),
        **ratios("speedup", [(a["median_tpot_ms"], b["median_tpot_ms"]) for a, b in zip(plain, std)]),
        "plain": _side(plain),
        "std": _side(std),
        "drafted": drafted,
        "acceptance": round(accepted / drafted, 4) if drafted else None,
        "mean_acceptance_length": round(median(lengths), 3) if lengths else None,
        "answers": len(answers),
        "equal_answers": sum(a == b for a, b in answers),
    }


def ratios(name: str, pairs: list[tuple[float, float]]) -> dict[str, Any]:
    """Not rounded: one may be far below 1. None where a repeat has no such time, as with answers of one token."""
    found = [over / under for over, under in pairs if over and under]
    if len(found) < len(pairs):
        return {name: None, f"{name}_range": None}
    return {name: median(found), f"{name}_range": [min(found), max(found)]}


def _side(runs: list[dict]) -> dict[str, Any]:
    """Medians over repeats, the tokens of one, and what each repeat gave, not rounded, that ratios are made of."""
    return {
        "output_tokens_per_s": round(median(run["output_throughput"] for run in runs), 2),
        "tpot_ms": round(median(run["median_tpot_ms"] for run in runs), 3),
        "ttft_ms": round(median(run["median_ttft_ms"] for run in runs), 2),
        "output_tokens": runs[0]["total_output_tokens"],
        "input_tokens": runs[0]["total_input_tokens"],
        "output_tokens_per_s_of_repeats": [run["output_throughput"] for run in runs],
        "tpot_ms_of_repeats": [run["median_tpot_ms"] for run in runs],
    }


COLUMNS = (
    "at a time", "std over plain, tok/s", "by TPOT", "plain tok/s", "std tok/s", "plain TPOT ms", "std TPOT ms",
    "plain TTFT ms", "std TTFT ms", "accepted", "tokens a pass", "equal answers",
)  # fmt: skip
TITLE = """Medians over repeats, lowest to highest in brackets; TPOT: time per output token after the first,
TTFT: to the first, medians over requests"""


def table(shown: list[dict]) -> Table:
    made = Table(title=TITLE)
    for name in COLUMNS:
        made.add_column(name, justify="right")
    for row in shown:
        plain, std = row["plain"], row["std"]
        cells = [row["concurrency"], _times(row, "throughput_ratio"), _times(row, "speedup")]
        for name, digits in (("output_tokens_per_s", 1), ("tpot_ms", 2), ("ttft_ms", 0)):
            cells += [f"{side[name]:.{digits}f}" for side in (plain, std)]
        cells += [row["acceptance"], row["mean_acceptance_length"], f"{row['equal_answers']} of {row['answers']}"]
        made.add_row(*("-" if cell is None else str(cell) for cell in cells))
    return made


def _times(row: dict, name: str) -> str | None:
    if row[name] is None:
        return None
    return "{:.2f}x ({:.2f} to {:.2f})".format(row[name], *row[f"{name}_range"])


def plot(shown: list[dict], title: str, file: Path) -> None:
    """The two ratios by concurrency; above 1, std is faster."""
    from matplotlib.figure import Figure

    figure = Figure((6, 4), layout="constrained")
    axes = figure.subplots()
    at = [row["concurrency"] for row in shown]
    for name, label in (("speedup", "time per output token"), ("throughput_ratio", "output tokens per second")):
        axes.plot(at, [row[name] for row in shown], marker="o", label=label)
    axes.axhline(1, color="gray", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_xticks(at, [str(concurrency) for concurrency in at])
    axes.set(title=title, xlabel="requests at a time", ylabel="speed of std, plain vLLM being 1")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=150)
