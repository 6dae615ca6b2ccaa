"""records.jsonl: a header with the settings, then one line for each prompt and cell; what a run resumes from."""

import json
from pathlib import Path

from vllm_std.tools.acceptance.grid import Cell


def count(passes: list[tuple[int, int]], generated: int, gamma: int) -> dict:
    """Drafts and accepted drafts of one answer, in all and by draft position.

    passes: (tokens sampled, drafts rejected) of each pass over the request, in order; generated: tokens of the answer.
    The pass that ends the prompt verifies no drafts. The last round counts in full, as in vLLM's own metrics, though
    the answer may end inside it: cutting it would favour short rounds. Passes after it (async scheduling runs ahead)
    do not count. Raises RuntimeError when the passes cannot have made the answer.
    """
    drafted, accepted, rounds, length = [0] * gamma, [0] * gamma, 0, 0
    for sampled, rejected in passes:
        drafts = sampled + rejected - 1
        if 0 < length < generated and drafts > 0:
            rounds += 1
            for position in range(drafts):
                drafted[position] += 1
                accepted[position] += position < sampled - 1
        length += sampled
    if length < generated:
        raise RuntimeError(f"the lab saw {length} tokens sampled for an answer of {generated}.")
    return {
        "rounds": rounds, "drafted": sum(drafted), "accepted": sum(accepted),
        "mean_acceptance_length": round(1 + sum(accepted) / rounds, 4) if rounds else None,
        "drafted_by_position": drafted, "accepted_by_position": accepted,
    }  # fmt: skip


class Records:
    """The records of one run folder; `rows` are those already there."""

    def __init__(self, out: Path):
        self.file = out / "records.jsonl"
        self.header: dict = {}
        self.rows: list[dict] = []
        if not self.file.exists():
            return
        text = self.file.read_text()
        whole = text[: text.rfind("\n") + 1]  # a run that was killed may have left half a line
        if whole != text:
            self.file.write_text(whole)
        lines = [json.loads(line) for line in whole.splitlines()]
        if lines:
            self.header, *self.rows = lines

    def require(self, **settings) -> None:
        """Raise ValueError when the records were made with other settings, naming the first that differs."""
        for name, value in settings.items():
            if name in self.header and self.header[name] != value:
                raise ValueError(
                    f"{self.file} was made with {name}={self.header[name]!r}, and this run has {value!r}: use another "
                    f"--out, or the settings of those records."
                )

    def begin(self, **settings) -> None:
        """Check the header that is there, or have one written before the first record."""
        self.require(**settings)
        self.header = self.header or settings

    def add(self, row: dict) -> None:
        if not self.rows:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.write_text(json.dumps(self.header) + "\n")
        self.rows.append(row)
        with self.file.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def done(self) -> set[tuple[str, Cell]]:
        """(prompt id, cell) pairs that need not run again."""
        return {(row["prompt"], Cell.of(row)) for row in self.rows}
