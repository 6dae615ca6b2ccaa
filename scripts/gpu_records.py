"""Records of what one GPU was asked: JSON lines, each with the card, its driver, the versions and the commit."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpu_parts import PARTS, Cell

SETTINGS = ("device", "vllm", "source", "tiny")  # what records must share to be one measurement


def load(file: Path) -> list[dict]:
    """The records of a run, which may have been cut off in the middle of a line."""
    if not file.exists():
        return []
    text = file.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        file.write_text(whole)
    return [json.loads(line) for line in whole.splitlines()]


class Records:
    """Adds to a file, line by line. shared: what all records of this call say; part: of those to come."""

    def __init__(self, file: Path, shared: dict[str, Any]):
        self.file, self.shared, self.part, self.rows = file, shared, "", load(file)

    def add(self, **fields) -> dict[str, Any]:
        row = {"part": self.part, **fields, **self.shared}
        self.rows.append(row)
        with self.file.open("a") as file:
            file.write(json.dumps(row) + "\n")
        return row

    def has(self, part: str, cell: Cell) -> bool:
        """Whether the cell was measured with the same settings, or was found not to fit."""
        where = {"part": part, "side": cell.side, "batch": cell.batch, "context": cell.context}
        wanted = asdict(cell) | {"what": "cell", "part": part, "options": PARTS[part].sides.get(cell.side)}
        if self.shared["tiny"]:
            wanted["options"] = PARTS[part].shrunk().sides.get(cell.side)
        return self.holds(**wanted) or self.holds(what="skipped", **where)

    def holds(self, **wanted) -> bool:
        wanted |= {name: self.shared[name] for name in SETTINGS}
        return any(all(row.get(name) == value for name, value in wanted.items()) for row in self.rows)
