"""The section of docs/speed.md that says what scripts/gpu/day.sh has measured on a GPU.

PYTHONPATH=scripts python -m gpu.page             # write it from docs/records/gpu/*.jsonl; --check only compares
PYTHONPATH=scripts python -m gpu.page FILE ...    # print the table of these records instead
"""

import argparse
from pathlib import Path

from bench import marked
from gpu.parts import PARTS
from gpu.records import load
from gpu.report import HEAD, compared_cells, failures, fields, kernels_line, last, never_slower, start_line, starts
from gpu.terminal import terminal_report

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "docs/records/gpu"
PAGE = ROOT / "docs/speed.md"
BEGIN = "<!-- gpu: begin (scripts/gpu/page.py) -->"
END = "<!-- gpu: end -->"
NOTHING = "std has not run on a GPU yet."
FACTS = ("device", "driver", "vllm", "torch", "commit")


def section(rows: list[dict]) -> str:
    """In Markdown; records of a CPU and of tiny models are left out."""
    rows = [row for row in rows if row["device"] != "cpu" and not row["tiny"]]
    if not rows:
        return NOTHING
    facts = dict.fromkeys(tuple(row[name] for name in FACTS) for row in rows)
    said = ["{}, driver {}, vLLM {}, torch {}, commit {}".format(*each) for each in facts]
    cells = compared_cells(rows)
    lines = ["; ".join(said) + ". Decode tokens/s over plain vLLM's of the same call, median and range:", ""]
    for part in dict.fromkeys(row["part"] for row in cells):
        lines += [f"**{PARTS[part].title}**", ""]
        lines += [*table(HEAD, [fields(row) for row in cells if row["part"] == part]), ""]
    lines += [text for line in never_slower(cells) for text in (line[0].upper() + line[1:] + ".", "")]
    kernels = last(rows, "kernels", "batch", "context")
    if kernels:
        lines += ["Selection alone, ms of a round (the goal is half of the memory's full rate):", ""]
        lines += [f"- {kernels_line(row).removeprefix('selection ')}" for row in kernels] + [""]
    lines += [f"- {start_line(row)}" for row in starts(rows)] + [""] * bool(starts(rows))
    lines += [f"- Failed: {row['part']}, {row['where']}" for row in failures(rows)]
    return "\n".join(lines).rstrip()


def table(head: tuple[str, ...], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="*", help="records, such as DIR/records.jsonl")
    parser.add_argument("--check", action="store_true", help="only say whether the page has the section as it is")
    args = parser.parse_args()
    for file in args.files:
        if not file.is_file():
            parser.error(f"{file} is not a file of records")
    if args.files:
        print(terminal_report([row for file in args.files for row in load(file)]))
        return
    rows = [row for file in sorted(RECORDS.glob("*.jsonl")) for row in load(file)]
    marked.write(PAGE, BEGIN, END, section(rows), args.check)


if __name__ == "__main__":
    main()
