"""One part, measured cell by cell; a record of each cell as soon as it is there.

Engines that fit the GPU together take turns at each cell. Of others one runs at a time: plain vLLM, the rest, and plain
vLLM again; a record's `visit` says after which, and the page divides by the plain turns around it. What another call
has measured with the same settings is left out, and plain vLLM is always timed again beside what is left.
"""

from gpu.call import Call
from gpu.measured import Measured
from gpu.parts import Part
from gpu.together import MeasuredTogether
from gpu.visits import MeasuredByVisits


def measure(name: str, part: Part, call: Call) -> None:
    """All cells of a part that are missing. Raises SideError where plain vLLM does not start."""
    missing = {}
    for side in part.sides:
        cells = [cell for cell in part.cells(side) if not call.records.has_cell(name, cell)]
        if cells:
            missing[side] = cells
    kind: type[Measured] = MeasuredTogether if part.together else MeasuredByVisits
    if missing:
        kind(name, part, call, missing).run()
