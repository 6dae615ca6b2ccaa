"""The speed tables of docs/speed.md: plain vLLM without the plugin, on Model Runner V1 and V2, and std, by the clock.

    python scripts/bench/speed.py run      # a JSON for each row, in the folder of this machine under docs/records/speed
    python scripts/bench/speed.py table    # a table of each folder; --check only compares

Each side is an engine in a process of its own, with the same model, prompts and arguments. They take turns, so what
disturbs the machine disturbs all; an idle one waits for its turn. All prompts are in the prefix cache and were answered
once before, so what is timed is decoding. A ratio is that of one turn, over the plain side that is faster by median.
"""

import itertools
import json
import re
import statistics
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import marked
import typer
from speed_rows import GROUPS, ROOT, hardware, prepare
from speed_sides import PLAIN, Turns

from vllm_std.tools.bench.ratio import ratio_of

RESULTS, PAGE = ROOT / "docs/records/speed", ROOT / "docs/speed.md"
BEGIN, END = "<!-- speed: begin (scripts/bench/speed.py table) -->", "<!-- speed: end -->"

app = typer.Typer(help=__doc__, rich_markup_mode=None)


@app.command("run")
def main(
    out: Annotated[Path | None, typer.Option(help="folder for the records; default: this machine's")] = None,
    only: Annotated[str, typer.Option(help="rows whose name has one of these, separated by commas")] = "",
    tokens: Annotated[int, typer.Option(help="of each answer")] = 256,
    repeats: Annotated[int, typer.Option(help="turns of each side")] = 5,
    std: Annotated[list[str], typer.Option(help="options of std, as JSON; repeatable, each is a side")] = ["{}"],
) -> None:
    """Measure rows and write a record of each."""
    prepare()
    out = out or RESULTS / re.sub(r"\W+", "-", hardware()["device"].lower())
    out.mkdir(parents=True, exist_ok=True)
    from vllm_std.config import StdConfig

    length = {"num_speculative_tokens": StdConfig.num_speculative_tokens}  # its default, so that a record says it
    options = {"std" if text == "{}" else f"std {text}": length | json.loads(text) for text in std}
    for group in GROUPS:
        rows = [row for row in group.rows if any(part in row.name for part in only.split(","))]
        if not rows:
            continue
        with Turns(group, options) as turns:
            for row in rows:
                found = turns.measure(row, tokens, repeats)
                record = {"row": asdict(row), "title": group.title, "synthetic_acceptance": group.synthetic}
                record |= {"std": options, "answer_tokens": tokens, **hardware(), **found}
                (out / f"{row.name}.json").write_text(json.dumps(record, indent=1) + "\n")
                typer.echo("\n".join(lines(record)))


def rates(record: dict, name: str) -> list[float]:
    """Tokens per second of each turn."""
    return [run["tokens"] / run["seconds"] for run in record["runs"] if run["side"] == name]


def fastest_plain(record: dict) -> str:
    return max(PLAIN, key=lambda name: statistics.median(rates(record, name)))


def ratios(record: dict, name: str) -> list[float]:
    """std over the faster plain side, turn by turn."""
    plain = rates(record, fastest_plain(record))
    return [std / other for std, other in zip(rates(record, name), plain)]


def first_token_ms(record: dict, name: str) -> str:
    """The median over the turns of a side; older records have none."""
    seconds = [run["to_first_token"] for run in record["runs"] if run["side"] == name and "to_first_token" in run]
    return f"{1000 * statistics.median(seconds):.0f}" if seconds else "not recorded"


def lines(record: dict) -> list[str]:
    """A line of the table for each side of std."""
    return [line(record, name) for name in record["std"]]


def line(record: dict, name: str) -> str:
    row, ratio = record["row"], ratio_of(ratios(record, name))
    medians = [statistics.median(rates(record, side)) for side in (*PLAIN, name)]
    drafted, accepted, tokens = (
        sum(run[what] for run in record["runs"] if run["side"] == name) for what in ("drafted", "accepted", "tokens")
    )
    share = f"{accepted / drafted:.3f}" if drafted else "none drafted"
    synthetic = record["synthetic_acceptance"] is not None
    if synthetic:
        share += f" (synthetic, {record['synthetic_acceptance']})"
    first = [first_token_ms(record, side) for side in (fastest_plain(record), name)]
    equal = f"{record['equal_to_plain_v2'][name]} of {row['batch']}" if not synthetic else "-"
    right = f"{record['right'][name]} of {row['batch']}" if "right" in record and not synthetic else "-"
    cells = [
        record["title"], f"{row['batch']} x {row['context']}", str(record["answer_tokens"]),
        options_of(record["std"][name]),
        ratio.markdown(),
        *(f"{rate:.0f}" for rate in medians), *first, share, f"{tokens / max(tokens - accepted, 1):.1f}", equal, right,
        str(len(rates(record, name))),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def options_of(std: dict[str, Any]) -> str:
    """The options that differ from the defaults, and the longest draft length."""
    length, others = std["num_speculative_tokens"], [name for name in std if name != "num_speculative_tokens"]
    return ", ".join([f"gamma {length}", *(f"{name} {json.dumps(std[name])}" for name in others)])


HEAD = (
    "model", "batch x context", "tokens an answer", "std with", "std over plain", "V1 tok/s", "V2 tok/s", "std tok/s",
    "plain TTFT ms", "std TTFT ms", "accepted", "tokens a pass", "equal answers", "right", "turns",
)  # fmt: skip


def tables() -> str:
    """A table for each machine, the one with most rows first."""
    records = Counter(path.parent for path in sorted(RESULTS.glob("*/*.json")))
    return "\n\n".join(table(folder) for folder, _ in records.most_common())


def table(folder: Path) -> str:
    names = [row.name for group in GROUPS for row in group.rows]
    records = [json.loads(path.read_text()) for name in names if (path := folder / f"{name}.json").exists()]
    first = records[0]
    said = f"{first['device']}, {first['dtype']}, vLLM {first['vllm']}, torch {first['torch']}; blocks of 32, greedy; "
    said += "median, lowest and highest of the turns of each side:"
    return "\n".join(
        [said, "", f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|", *itertools.chain(*map(lines, records))]
    )


@app.command("table")
def write(
    check: Annotated[bool, typer.Option(help="Only say whether the page has the table as it is.")] = False,
) -> None:
    """Make the table of the records."""
    marked.write(PAGE, BEGIN, END, tables(), check)


if __name__ == "__main__":
    app()
