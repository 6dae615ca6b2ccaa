"""Engines that fit the GPU together, in turns."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

from gpu.measured import Measured
from gpu.parts import TimedCell
from gpu.prompts import draw_videos
from gpu.side import Side, SideError

from vllm_std.tools.bench.sides import turns


class MeasuredTogether(Measured):
    def run(self) -> None:
        if self.part.model == "video":
            for row in self.part.rows:
                draw_videos(*row)
        with ExitStack() as stack:
            sides = self._start(stack)
            for row in self.part.rows:
                cells = [c for name in sides for c in self.missing.get(name, ()) if (c.batch, c.context) == row]
                if cells and self._load(sides, row):
                    self._run_beside_plain(sides, cells)

    def _start(self, stack: ExitStack) -> dict[str, Side]:
        """The engines; one of std or n-gram that does not start is left out."""
        sides = {}
        for name in ("plain", *self.missing):
            try:
                sides[name] = stack.enter_context(self.call.open(name, self.part, 1 / (1 + len(self.missing))))
            except SideError as error:
                if name == "plain":
                    raise
                self.add_failure(name, error)
        return sides

    def _load(self, sides: dict[str, Side], row: tuple[int, int]) -> bool:
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
                self.add_failure(name, error)
                sides.pop(name).close()
        for name in self.missing if any(reasons) else ():
            self.add_skipped(name, row, next(filter(None, reasons)))
        return not any(reasons)

    def _run_beside_plain(self, sides: dict[str, Side], cells: list[TimedCell]) -> None:
        """Each cell beside plain vLLM; which of them begins changes from turn to turn."""
        for cell in cells:
            if not sides["plain"].alive or self.call.seconds_left() < 0:
                return self.say("the rest is for another call")
            if cell.side not in sides or not sides[cell.side].alive:
                continue
            self.visit += 1
            asked = {"plain": replace(cell, side="plain", gamma=0, rate=None), cell.side: cell}
            with self.failure_recorded(cell):
                runs: dict[str, list] = {"plain": [], cell.side: []}
                for turn, side in turns(self.part.turns, ("plain", cell.side)):
                    runs[side].append(sides[side].ask("run", asked[side], turn, turn == 0))
                note_equal_answers(runs[cell.side], runs["plain"])
                for side, its_runs in runs.items():
                    self.add(sides[side], asked[side], its_runs)


def note_equal_answers(turns: list[dict], plain: list[dict]) -> None:
    """Note in each turn how many of its answers are those of plain vLLM's, and at which token the others part."""
    for ours, theirs in zip(turns, plain):
        if "answers" in ours:
            parted = list(first_differences(ours["answers"], theirs["answers"]))
            ours["equal_answers"] = len(ours["answers"]) - len(parted)
            ours["answers_in_all"] = len(ours["answers"])
            ours["parts_at"] = sorted(parted)


def first_differences(ours: list[list[int]], theirs: list[list[int]]) -> Iterator[int]:
    """The first token that differs, from 0, of each pair of answers that are not the same."""
    for a, b in zip(ours, theirs, strict=True):
        if a != b:
            yield next((i for i, (one, other) in enumerate(zip(a, b)) if one != other), min(len(a), len(b)))
