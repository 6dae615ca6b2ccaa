"""One engine at a time: plain vLLM, the others, and plain vLLM again."""

import time
from itertools import groupby

from gpu.measured import Measured
from gpu.parts import TimedCell
from gpu.side import SideError

CLOSING = 0.9  # of what the first visit of plain vLLM took: kept for the last


class MeasuredByVisits(Measured):
    reserve = 0.0  # seconds that plain vLLM still needs at the end

    def run(self) -> None:
        begun = time.time()
        half = (self.part.turns + 1) // 2
        self._visit("plain", self.part.cells("plain"), range(half))
        self.reserve = CLOSING * (time.time() - begun)
        for side, cells in self.missing.items():
            if self.call.seconds_left() < 2 * self.reserve:
                self.say(f"too little time is left for {side}")
                continue
            try:
                self._visit(side, cells, range(self.part.turns))
            except SideError as error:
                self.add_failure(side, error)
        self.reserve = 0.0
        if self.count:
            self._visit("plain", self.part.cells("plain"), range(half, 2 * half))

    def _visit(self, name: str, cells: list[TimedCell], turns: range) -> None:
        self.visit += 1
        rows = {(cell.batch, cell.context) for missing in self.missing.values() for cell in missing}
        with self.call.open(name, self.part) as side:
            for row, group in groupby(cells, lambda cell: (cell.batch, cell.context)):
                if row not in rows or self.call.seconds_left() < self.reserve:
                    continue
                if reason := side.ask("load", *row):
                    self.add_skipped(name, row, reason)
                    continue
                for cell in group:
                    if not side.alive or self.call.seconds_left() < self.reserve:
                        self.say("the rest is for another call")
                        break
                    with self.failure_recorded(cell):
                        self.add(side, cell, [side.ask("run", cell, turn, turn == turns[0]) for turn in turns])
