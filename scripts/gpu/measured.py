"""What both ways of measuring a part share: the records."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from statistics import median

from gpu.call import Call
from gpu.parts import Part, TimedCell
from gpu.side import Side, SideError

FACTS = ("dtype", "block_size", "async_scheduling", "costs")  # of an engine, for the record of a cell


class Measured:
    """missing: cells to measure, by side."""

    def __init__(self, name: str, part: Part, call: Call, missing: dict[str, list[TimedCell]]):
        self.name = name
        self.part = part
        self.call = call
        self.missing = missing
        self.visit = 0
        self.count = 0  # cells measured that are not plain

    def run(self) -> None:
        raise NotImplementedError

    def add(self, side: Side, cell: TimedCell, turns: list[dict]) -> None:
        self.count += cell.side != "plain"
        for turn in turns:
            turn.pop("answers", None)
        fields = asdict(cell) | {"options": self.part.sides.get(cell.side), "model": self.part.model}
        facts = {name: side.facts[name] for name in FACTS}
        self.call.records.add(what="cell", visit=self.visit, **fields, **facts, turns=turns)
        ms, speed = (median(turn[name] for turn in turns) for name in ("ms_per_step", "tokens_per_s"))
        self.say(f"{cell}: {ms:.2f} ms a step, {speed:,.0f} tokens/s")

    @contextmanager
    def failure_recorded(self, cell: TimedCell) -> Iterator[None]:
        """A cell that fails is recorded as such, and the next one is measured."""
        try:
            yield
        except SideError as error:
            self.add_failure(str(cell), error)

    def add_failure(self, where: str, error: Exception) -> None:
        self.call.records.add(what="failure", where=where, error=str(error))
        self.say(f"{where} failed: {error}")

    def add_skipped(self, side: str, row: tuple[int, int], reason: str) -> None:
        batch, context = row
        self.call.records.add(what="skipped", side=side, batch=batch, context=context, reason=reason)
        self.say(f"{side} {batch} x {context:,} {reason}")

    def say(self, text: str) -> None:
        print(f"{self.name}: {text}", flush=True)
