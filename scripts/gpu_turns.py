"""One part of gpu_parts.py, measured cell by cell; a record of each cell as soon as it is there.

Engines that fit the GPU together take turns at each cell. Of others one runs at a time: plain vLLM, the rest, and plain
vLLM again; a record's `visit` says after which, and the page divides by the plain turns around it. What another call
has measured with the same settings is left out, and plain vLLM is always timed again beside what is left.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from statistics import median

from gpu_options import Setup
from gpu_parts import Cell, Part
from gpu_prompts import make_videos
from gpu_records import Records
from gpu_side import Side, SideError

CLOSING = 0.9  # of what the first visit of plain vLLM took: kept for the last


@dataclass
class Call:
    """One call of the command. until: seconds since 1970 after which nothing new begins; memory: share of the GPU."""

    records: Records
    log: Path
    until: float
    device: str
    memory: float
    text_model: Path

    def left(self) -> float:
        return self.until - time.time()

    def open(self, name: str, part: Part, memory: float = 1.0, variables=None, usual=False, cache="any") -> Side:
        """Start an engine and record what its start took. cache: what it found compiled, for the record."""
        of = Setup(part, self.device, memory * self.memory, self.text_model, usual)
        side = Side(name, of, self.log, self.until + 20, variables)
        self.records.add(what="start", side=name, options=part.sides.get(name), cache=cache, **side.facts)
        seconds, tokens = side.facts["seconds"]["to_start"], side.facts["kv_tokens"]
        print(f"{name}: up in {seconds:.0f} s, room for {tokens:,} tokens of KV", flush=True)
        return side


def measure(name: str, part: Part, call: Call) -> None:
    """All cells of a part that are missing. Raises SideError where plain vLLM does not start."""
    wanted = {side: [cell for cell in part.cells(side) if not call.records.has(name, cell)] for side in part.sides}
    wanted = {side: cells for side, cells in wanted.items() if cells}
    if wanted:
        Measured(name, part, call, wanted).run()


class Measured:
    def __init__(self, name: str, part: Part, call: Call, wanted: dict[str, list[Cell]]):
        self.name, self.part, self.call, self.wanted, self.visit = name, part, call, wanted, 0
        self.measured = 0  # cells that are not plain
        self.reserve = 0.0  # seconds that plain vLLM still needs at the end

    def run(self) -> None:
        self._together() if self.part.together else self._one_by_one()

    # ------------------------------------------------------------ one engine at a time

    def _one_by_one(self) -> None:
        begun, half = time.time(), (self.part.turns + 1) // 2
        self._visit("plain", self.part.cells("plain"), range(half))
        self.reserve = CLOSING * (time.time() - begun)
        for side, cells in self.wanted.items():
            if self.call.left() < 2 * self.reserve:
                self._say(f"too little time is left for {side}")
                continue
            try:
                self._visit(side, cells, range(self.part.turns))
            except SideError as error:
                self._failed(side, error)
        self.reserve = 0.0
        if self.measured:
            self._visit("plain", self.part.cells("plain"), range(half, 2 * half))

    def _visit(self, name: str, cells: list[Cell], turns: range) -> None:
        self.visit += 1
        rows = {(cell.batch, cell.context) for side in self.wanted.values() for cell in side}
        with self.call.open(name, self.part) as side:
            for row, group in groupby(cells, lambda cell: (cell.batch, cell.context)):
                if row not in rows or self.call.left() < self.reserve:
                    continue
                if reason := side.ask("load", *row):
                    self._skip(name, row, reason)
                    continue
                for cell in group:
                    if not side.alive or self.call.left() < self.reserve:
                        self._say("the rest is for another call")
                        break
                    with self._kept(cell):
                        self._add(side, cell, [side.ask("run", cell, turn, turn == turns[0]) for turn in turns])

    # ------------------------------------------------------------ engines that take turns

    def _together(self) -> None:
        if self.part.model == "video":
            for row in self.part.rows:
                make_videos(*row)
        with ExitStack() as stack:
            share, sides = 1 / (1 + len(self.wanted)), {}
            for name in ("plain", *self.wanted):
                try:
                    sides[name] = stack.enter_context(self.call.open(name, self.part, share))
                except SideError as error:
                    if name == "plain":
                        raise
                    self._failed(name, error)
            for row in self.part.rows:
                cells = [c for name in sides for c in self.wanted.get(name, ()) if (c.batch, c.context) == row]
                self._row(sides, row, cells)

    def _row(self, sides: dict[str, Side], row: tuple[int, int], cells: list[Cell]) -> None:
        """Each cell beside plain vLLM, and who begins changes from turn to turn."""
        if not cells or not self._loaded(sides, row):
            return
        for cell in cells:
            if not sides["plain"].alive or self.call.left() < 0:
                return self._say("the rest is for another call")
            if cell.side not in sides or not sides[cell.side].alive:
                continue
            self.visit += 1
            plain = replace(cell, side="plain", gamma=0, rate=None)
            with self._kept(cell):
                runs: dict[str, list] = {"plain": [], cell.side: []}
                for turn in range(self.part.turns):
                    for one in (plain, cell) if turn % 2 == 0 else (cell, plain):
                        runs[one.side].append(sides[one.side].ask("run", one, turn, turn == 0))
                compared(runs[cell.side], runs["plain"])
                self._add(sides["plain"], plain, runs["plain"])
                self._add(sides[cell.side], cell, runs[cell.side])

    def _loaded(self, sides: dict[str, Side], row: tuple[int, int]) -> bool:
        """Bring the prompts of a row into all engines, at the same time; one that fails is left out from now on."""
        reasons = []
        for side in sides.values():
            side.tell("load", *row)
        for name in list(sides):
            try:
                reasons.append(sides[name].answer())
            except SideError as error:
                if name == "plain":
                    raise
                self._failed(name, error)
                sides.pop(name).close()
        for name in self.wanted if any(reasons) else ():
            self._skip(name, row, next(filter(None, reasons)))
        return not any(reasons)

    # ------------------------------------------------------------ records

    def _add(self, side: Side, cell: Cell, turns: list[dict]) -> None:
        self.measured += cell.side != "plain"
        for turn in turns:
            turn.pop("answers", None)
        fields = asdict(cell) | {"options": self.part.sides.get(cell.side), "model": self.part.model}
        facts = {name: side.facts[name] for name in ("dtype", "block_size", "async_scheduling", "costs")}
        self.call.records.add(what="cell", visit=self.visit, **fields, **facts, turns=turns)
        ms, speed = (median(turn[name] for turn in turns) for name in ("ms_per_round", "tokens_per_s"))
        self._say(f"{cell}: {ms:.2f} ms a round, {speed:,.0f} tokens/s")

    @contextmanager
    def _kept(self, cell: Cell) -> Iterator[None]:
        """A cell that fails is recorded as such, and the next one is measured."""
        try:
            yield
        except SideError as error:
            self._failed(str(cell), error)

    def _failed(self, where: str, error: Exception) -> None:
        self.call.records.add(what="failure", where=where, error=str(error))
        self._say(f"{where} failed: {error}")

    def _skip(self, name: str, row: tuple[int, int], reason: str) -> None:
        self.call.records.add(what="skipped", side=name, batch=row[0], context=row[1], reason=reason)
        self._say(f"{name} {row[0]} x {row[1]:,} {reason}")

    def _say(self, text: str) -> None:
        print(f"{self.name}: {text}", flush=True)


def compared(turns: list[dict], plain: list[dict]) -> None:
    """Note in each turn how many of its answers are those of plain vLLM's, and at which token the others part."""
    for ours, theirs in zip(turns, plain):
        if "answers" in ours:
            at = list(parted(ours["answers"], theirs["answers"]))
            ours |= {"equal_answers": len(ours["answers"]) - len(at), "answers_in_all": len(ours["answers"])}
            ours["parts_at"] = sorted(at)


def parted(ours: list[list[int]], theirs: list[list[int]]) -> Iterator[int]:
    """The first token that differs, from 0, of each pair of answers that are not the same."""
    for a, b in zip(ours, theirs, strict=True):
        if a != b:
            yield next((i for i, (one, other) in enumerate(zip(a, b)) if one != other), min(len(a), len(b)))
