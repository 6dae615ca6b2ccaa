"""README's support matrix, from what the tests showed:

python -m pytest -n 2 --dist loadfile --support scripts/results/support/0.32.json
python scripts/support_matrix.py            # writes the table into README.md; --check only compares
"""

import json
from pathlib import Path
from typing import Annotated

import marked
import typer

ROOT = Path(__file__).resolve().parent.parent
RESULTS, README = ROOT / "scripts/results/support", ROOT / "README.md"
BEGIN, END = "<!-- support matrix: begin (scripts/support_matrix.py) -->", "<!-- support matrix: end -->"


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


def main(check: Annotated[bool, typer.Option(help="Only say whether README has the table as it is.")] = False) -> None:
    marked.write(README, BEGIN, END, table(load()), check)


if __name__ == "__main__":
    typer.run(main)
