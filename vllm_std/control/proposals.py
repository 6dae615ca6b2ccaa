"""How often the proposals of draft steps come true, and how many drafts a round's steps therefore make."""

import math
from collections.abc import Sequence

import numpy as np

DECAY = 0.98  # of the counts, by round
PRIOR_COMPARED = 4.0  # comparisons that the prior counts as: the first proposal fails, others do as the one before


class ProposalEstimator:
    """proposals: tokens that a draft step is given beyond the last one of a request.

    counts: [2, proposals] proposals by number that came true, and that were compared with a sample, of late.
    drafts_a_step: drafts that a step is expected to make of a request; at least 1.
    """

    def __init__(self, proposals: int):
        self.counts = np.zeros((2, proposals))
        self.drafts_a_step = 1.0

    @property
    def enabled(self) -> bool:
        return self.counts.size > 0

    def count(self, outcomes: Sequence[Sequence[int]]) -> None:
        """A round's outcomes, summed over its requests; [2][proposals], as `counts` has them."""
        self.counts = DECAY * self.counts + np.array(outcomes)
        rate, comes_true = 0.0, 1.0
        self.drafts_a_step = 1.0
        for true, compared in self.counts.T.tolist():
            rate = (true + PRIOR_COMPARED * rate) / (compared + PRIOR_COMPARED)
            comes_true *= rate
            self.drafts_a_step += comes_true

    def drafts(self, lengths: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """[2, rounds] drafts that a request is given by so many steps: as is expected, and at most, which differs until
        proposals were compared. Places that are left of a draft length have proposals that no step has sampled."""
        expected = np.minimum(lengths, steps * self.drafts_a_step)
        untried = self.enabled and not self.counts[1].any()
        return np.stack([expected, lengths if untried else expected])

    def steps(self, length: int) -> int:
        """Draft steps that are expected to make so many drafts."""
        return math.ceil(length / self.drafts_a_step)
