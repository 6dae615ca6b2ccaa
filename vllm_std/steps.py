"""Scheduling steps: which of them leave queries; and their statistics, which the scheduler counts and sends to the
metrics with vLLM's own."""

from collections import Counter
from typing import Any

# Why a step drafts as much as it does; the last four do not draft.
REASONS = ("on", "explore", "fixed", "unscored", "cost", "acceptance", "idle", "fault")


def leaves_queries(max_query_len: int) -> bool:
    """Whether a dense pass leaves observation queries; max_query_len: most tokens of a request in it.

    Not a pass of one token per request: it is one of plain decoding, whose CUDA graphs are vLLM's own.
    """
    return max_query_len > 1


class StepStats:
    """Steps since the last `collect`; it imports nothing of vLLM."""

    def __init__(self):
        self.lengths: Counter[str] = Counter()  # steps by draft length
        self.reasons: Counter[str] = Counter()  # steps by reason
        self.off: Counter[str] = Counter()  # steps that did not draft, by reason
        self.speedup = 1.0  # estimated, of the last step
        self.kept: float | None = None  # share of the context, of the last step that drafted
        self.proposals = [0, 0]  # that came true, and that were compared with a sample

    def count(self, length: int, reason: str, speedup: float, kept: float) -> None:
        """Count a step.

        length: tokens drafted for each request that has not opted out. reason: one of REASONS. speedup: estimated, over
        plain decoding. kept: share of the context that its draft steps attend to; means nothing in a step that does not
        draft.
        """
        self.lengths[str(length)] += 1
        self.reasons[reason] += 1
        self.speedup = speedup
        if length:
            self.kept = kept
        else:
            self.off[reason] += 1

    def count_proposals(self, outcomes: list[list[int]]) -> None:
        """outcomes: proposals by number that came true, and that were compared with a sample."""
        self.proposals = [total + sum(counts) for total, counts in zip(self.proposals, outcomes)]

    def collect(self, acceptance: list[float]) -> dict[str, Any] | None:
        """What was counted since the last call, in values that msgspec carries; None where there were no steps.

        acceptance: of drafts whose predecessors were accepted, by draft position.
        """
        if not self.lengths:
            return None
        counts = {name: dict(getattr(self, name)) for name in ("lengths", "reasons", "off")}
        last = {"speedup": self.speedup, "kept": self.kept, "proposals": self.proposals}
        self.__init__()  # type: ignore[misc]
        return counts | last | {"acceptance": acceptance}
