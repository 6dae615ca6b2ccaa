"""The tables of docs/compatibility.md, from what the tests showed:

python -m pytest -n 2 --dist loadfile --support docs/records/support/0.33.json
python scripts/support_matrix.py            # writes both tables; --check only compares
"""

import json
from pathlib import Path
from typing import Annotated

import typer
from bench import marked

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE = ROOT / "docs/records/support", ROOT / "docs/compatibility.md"
BEGIN, END = "<!-- support matrix: begin (scripts/support_matrix.py) -->", "<!-- support matrix: end -->"
VERSIONS = "<!-- versions: begin (scripts/support_matrix.py) -->", "<!-- versions: end -->"


def load() -> list[dict]:
    """Records of the test runs, newest vLLM last: {"vllm": version, "outcomes": {feature: {test: outcome}}}."""
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]


def cell(outcomes: dict[str, str]) -> str:
    passed = sum(outcome == "passed" for outcome in outcomes.values())
    if not outcomes:
        return "not run"
    return f"{passed} passed" if passed == len(outcomes) else f"**{passed} of {len(outcomes)}**"


def table(records: list[dict]) -> str:
    features = sorted({feature for record in records for feature in record["outcomes"]}, key=str.lower)
    lines = ["| works with | " + " | ".join(f"vLLM {record['vllm']}" for record in records) + " | tests in |"]
    lines.append("|---" * (len(records) + 2) + "|")
    for feature in features:
        each = [record["outcomes"].get(feature, {}) for record in records]
        files = sorted({Path(test.split("::")[0]).name for outcomes in each for test in outcomes})
        lines.append(f"| {feature} | {' | '.join(map(cell, each))} | {', '.join(f'`{name}`' for name in files)} |")
    return "\n".join(lines)


def versions(records: list[dict]) -> str:
    lines = ["| vLLM | recorded | features shown | by tests |", "|---|---|---|---|"]
    for record in reversed(records):
        tests = {test: outcome for each in record["outcomes"].values() for test, outcome in each.items()}
        passed = sum(outcome == "passed" for outcome in tests.values())
        lines.append(
            f"| {record['vllm']} | {record['date']} | {len(record['outcomes'])} | {passed} of {len(tests)} pass |"
        )
    return "\n".join(lines)


def main(check: Annotated[bool, typer.Option(help="Only say whether the tables are as they are.")] = False) -> None:
    marked.write(PAGE, BEGIN, END, table(load()), check)
    marked.write(PAGE, *VERSIONS, versions(load()), check)


if __name__ == "__main__":
    typer.run(main)
