"""The section of docs/speed.md that says what gpu_day.sh has measured on a GPU.

python scripts/gpu_page.py             # write it from docs/records/gpu/*.jsonl; --check only compares
python scripts/gpu_page.py FILE ...    # print the table of these records instead
"""

import argparse
from pathlib import Path

from gpu_parts import PARTS
from gpu_records import load
from gpu_report import HEAD, cells, failures, fields, kernels_line, last, never_slower, report, start_line, starts

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE = ROOT / "docs/records/gpu", ROOT / "docs/speed.md"
BEGIN, END = "<!-- gpu: begin (scripts/gpu_page.py) -->", "<!-- gpu: end -->"
NOTHING = "std has not run on a GPU yet."


def section(rows: list[dict]) -> str:
    rows = [row for row in rows if row["device"] != "cpu" and not row["tiny"]]
    if not rows:
        return NOTHING
    found, said = cells(rows), []
    for facts in dict.fromkeys(
        (row["device"], row["driver"], row["vllm"], row["torch"], row["commit"]) for row in rows
    ):
        said.append("{}, driver {}, vLLM {}, torch {}, commit {}".format(*facts))
    lines = ["; ".join(said) + ". Decode tokens/s over plain vLLM's of the same call, median and range:", ""]
    for part in dict.fromkeys(row["part"] for row in found):
        lines += [
            f"**{PARTS[part].title}**",
            "",
            *table(HEAD, [fields(row) for row in found if row["part"] == part]),
            "",
        ]
    lines += [sentence for line in never_slower(found) for sentence in (line[0].upper() + line[1:] + ".", "")]
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
        print(report([row for file in args.files for row in load(file)]))
        return
    from bench import marked

    marked.write(
        PAGE, BEGIN, END, section([r for file in sorted(RESULTS.glob("*.jsonl")) for r in load(file)]), args.check
    )


if __name__ == "__main__":
    main()
