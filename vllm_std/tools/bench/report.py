"""What a comparison found: rows for programs, a table, and lines below it."""

from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table

from vllm_std.tools.bench.ratio import Ratio, paired_ratio
from vllm_std.tools.bench.run import Results
from vllm_std.tools.bench.sides import PLAIN, STD

COLUMNS = (
    "at a time", "std over plain, tok/s", "by TPOT", "plain tok/s", "std tok/s", "plain TPOT ms", "std TPOT ms",
    "plain TTFT ms", "std TTFT ms", "accepted", "tokens a pass", "equal answers",
)  # fmt: skip
TITLE = """Medians over repeats, lowest to highest in brackets; TPOT: time per output token after the first,
TTFT: to the first, medians over requests"""


def rows(results: Results) -> list[dict[str, Any]]:
    """One for each concurrency.

    throughput_ratio: output tokens per second of std over those of plain; speedup: time per output token of plain over
    that of std, medians over requests. Each is the median over repeats, of ratios of one repeat, and has its lowest
    and highest value as `..._range`; None where an answer has one token, which has no time per further token.
    """
    return [_row(concurrency, plain, results[STD][concurrency]) for concurrency, plain in results[PLAIN].items()]


def _row(concurrency: int, plain: list[dict], std: list[dict]) -> dict[str, Any]:
    repeats = list(zip(plain, std))
    answers = [pair for a, b in repeats for pair in zip(a["generated_texts"], b["generated_texts"])]
    drafted = sum(run.get("spec_decode_draft_tokens", 0) for run in std)
    accepted = sum(run.get("spec_decode_accepted_tokens", 0) for run in std)
    lengths = [run["spec_decode_acceptance_length"] for run in std if run.get("spec_decode_draft_tokens")]
    throughput = paired_ratio((b["output_throughput"], a["output_throughput"]) for a, b in repeats)
    latency = paired_ratio((a["median_tpot_ms"], b["median_tpot_ms"]) for a, b in repeats)
    return {
        "concurrency": concurrency,
        **_fields(throughput, "throughput_ratio"),
        **_fields(latency, "speedup"),
        "plain": _side_summary(plain),
        "std": _side_summary(std),
        "drafted": drafted,
        "acceptance": round(accepted / drafted, 4) if drafted else None,
        "mean_acceptance_length": round(median(lengths), 3) if lengths else None,
        "answers": len(answers),
        "equal_answers": sum(a == b for a, b in answers),
    }


def _fields(ratio: Ratio | None, name: str) -> dict[str, Any]:
    return ratio.fields(name) if ratio else {name: None, f"{name}_range": None}


def _side_summary(runs: list[dict]) -> dict[str, Any]:
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


def comparison_table(rows: list[dict]) -> Table:
    table = Table(title=TITLE)
    for name in COLUMNS:
        table.add_column(name, justify="right")
    for row in rows:
        cells = [row["concurrency"], _ratio_text(row, "throughput_ratio"), _ratio_text(row, "speedup")]
        for name, digits in (("output_tokens_per_s", 1), ("tpot_ms", 2), ("ttft_ms", 0)):
            cells += [f"{row[side][name]:.{digits}f}" for side in (PLAIN, STD)]
        cells += [row["acceptance"], row["mean_acceptance_length"], f"{row['equal_answers']} of {row['answers']}"]
        table.add_row(*("-" if cell is None else str(cell) for cell in cells))
    return table


def _ratio_text(row: dict, name: str) -> str | None:
    return None if row[name] is None else str(Ratio(row[name], *row[f"{name}_range"]))


def lines_below(comparison: dict, out: Path) -> list[str]:
    """The table."""
    lines = [f"Device: {comparison['device']}. Written to {out}: results.json, bench.png, vllm-bench.txt."]
    if comparison["settings"]["one_server"]:
        lines.append("Plain is the same server with std left out of each request; its KV cache has std's size.")
    if not any(row["drafted"] for row in comparison["rows"]):
        lines.append("Nothing was drafted: std judged that no draft would pay, or the server has no std.")
    return lines
