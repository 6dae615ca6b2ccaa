"""Records of what one GPU was asked: JSON lines, each with the card, its driver, the versions and the commit."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpu.parts import PARTS, TimedCell

SETTINGS = ("device", "vllm", "source", "tiny")  # what records must share to be one measurement


def load(file: Path) -> list[dict]:
    """The records of a run, which may have been cut off in the middle of a line."""
    if not file.exists():
        return []
    text = file.read_text()
    whole_lines = text[: text.rfind("\n") + 1]
    if whole_lines != text:
        file.write_text(whole_lines)
    return [json.loads(line) for line in whole_lines.splitlines()]


class Records:
    """Adds to a file, line by line. shared: what all records of this call say; part: of those to come."""

    def __init__(self, file: Path, shared: dict[str, Any]):
        self.file = file
        self.shared = shared
        self.part = ""
        self.rows = load(file)

    def add(self, **fields) -> dict[str, Any]:
        row = {"part": self.part, **fields, **self.shared}
        self.rows.append(row)
        with self.file.open("a") as file:
            file.write(json.dumps(row) + "\n")
        return row

    def has_cell(self, part: str, cell: TimedCell) -> bool:
        """Whether the cell was measured with the same settings, or was found not to fit."""
        sides = (PARTS[part].shrunk() if self.shared["tiny"] else PARTS[part]).sides
        if self.has(what="cell", part=part, options=sides.get(cell.side), **asdict(cell)):
            return True
        return self.has(what="skipped", part=part, side=cell.side, batch=cell.batch, context=cell.context)

    def has(self, **fields) -> bool:
        fields |= {name: self.shared[name] for name in SETTINGS}
        return any(all(row.get(name) == value for name, value in fields.items()) for row in self.rows)
