"""What a comparison found: rows for programs, a table, a picture."""

from pathlib import Path
from typing import Any

from rich.table import Table


def rows(found: dict[str, dict[int, dict]]) -> list[dict[str, Any]]:
    """One for each concurrency; speedup: time per output token of plain over that of std, medians over requests."""
    return [_row(concurrency, plain, found["std"][concurrency]) for concurrency, plain in found["plain"].items()]


def _row(concurrency: int, plain: dict, std: dict) -> dict[str, Any]:
    answers = list(zip(plain["generated_texts"], std["generated_texts"]))
    drafted = std.get("spec_decode_draft_tokens", 0)
    return {
        "concurrency": concurrency,
        "plain": _side(plain),
        "std": _side(std),
        "speedup": _ratio(plain["median_tpot_ms"], std["median_tpot_ms"]),
        "throughput_ratio": _ratio(std["output_throughput"], plain["output_throughput"]),
        "drafted": drafted,
        "acceptance": round(std["spec_decode_accepted_tokens"] / drafted, 4) if drafted else None,
        "mean_acceptance_length": round(std["spec_decode_acceptance_length"], 3) if drafted else None,
        "answers": len(answers),
        "equal_answers": sum(a == b for a, b in answers),
    }


def _side(result: dict) -> dict[str, float]:
    return {
        "output_tokens_per_s": round(result["output_throughput"], 2),
        "tpot_ms": round(result["median_tpot_ms"], 3),
        "ttft_ms": round(result["median_ttft_ms"], 2),
        "output_tokens": result["total_output_tokens"],
        "input_tokens": result["total_input_tokens"],
    }


def _ratio(over: float, under: float) -> float | None:
    return round(over / under, 3) if under else None


COLUMNS = (
    "at a time", "plain tok/s", "std tok/s", "ratio", "plain TPOT ms", "std TPOT ms", "speed-up", "plain TTFT ms",
    "std TTFT ms", "accepted", "tokens a pass", "equal answers",
)  # fmt: skip


def table(shown: list[dict]) -> Table:
    made = Table(title="TPOT: time per output token after the first, TTFT: to the first; medians over requests")
    for name in COLUMNS:
        made.add_column(name, justify="right")
    for row in shown:
        plain, std = row["plain"], row["std"]
        cells = [row["concurrency"], f"{plain['output_tokens_per_s']:.1f}", f"{std['output_tokens_per_s']:.1f}"]
        cells += [_times(row["throughput_ratio"]), f"{plain['tpot_ms']:.2f}", f"{std['tpot_ms']:.2f}"]
        cells += [_times(row["speedup"]), f"{plain['ttft_ms']:.0f}", f"{std['ttft_ms']:.0f}"]
        cells += [row["acceptance"], row["mean_acceptance_length"], f"{row['equal_answers']} of {row['answers']}"]
        made.add_row(*("-" if cell is None else str(cell) for cell in cells))
    return made


def _times(ratio: float | None) -> str | None:
    return f"{ratio:.2f}x" if ratio is not None else None


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
