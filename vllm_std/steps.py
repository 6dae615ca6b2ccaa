"""What the scheduler tells of its steps: counted beside it, and carried to the metrics with vLLM's own statistics."""

from collections import Counter
from typing import Any

REASONS = (
    "on",
    "probe",
    "fixed",
    "blind",
    "cost",
    "acceptance",
    "idle",
    "fault",
)  # why a step drafts as much as it does


class StepStats:
    """Steps since the last handover; it imports nothing of vLLM."""

    def __init__(self):
        self.lengths, self.reasons, self.off = Counter(), Counter(), Counter()
        self.speedup, self.kept, self.skipped = 1.0, None, 0

    def step(self, length: int, reason: str, speedup: float, kept: float, skipped: int) -> None:
        """Count a step.

        length: tokens drafted for each request that is drafted for; reason: one of REASONS; speedup: estimated, plain
        steps are 1; kept: share of the context that its draft steps attend to; skipped: requests not drafted for, while
        others are. The last two mean nothing in a step that does not draft.
        """
        self.lengths[str(length)] += 1
        self.reasons[reason] += 1
        self.speedup, self.skipped = speedup, skipped if length else 0
        if length:
            self.kept = kept
        else:
            self.off[reason] += 1

    def take(self, acceptance: list[float]) -> dict[str, Any] | None:
        """Hand over what was counted, in values that msgspec carries; None where there were no steps.

        acceptance: of drafts whose predecessors were accepted, by draft position. `off` holds the reasons of the steps
        that did not draft; `speedup` and `skipped` are those of the last step, `kept` that of the last which drafted.
        """
        if not self.lengths:
            return None
        counts = {name: dict(getattr(self, name)) for name in ("lengths", "reasons", "off")}
        last = {"speedup": self.speedup, "kept": self.kept, "skipped": self.skipped}
        self.__init__()  # type: ignore[misc]
        return counts | last | {"acceptance": acceptance}
