"""How often the proposals of draft steps come true, and how many drafts a round's steps therefore make."""

import math
from collections.abc import Sequence

import numpy as np

DECAY = 0.98  # of the counts, by round
PRIOR_COMPARED = 16.0  # comparisons without success that the prior counts as, so that a step drafts one token at first


class ProposalEstimator:
    """proposals: tokens that a draft step is given beyond the last one of a request.

    counts: [2, proposals] proposals by number that came true, and that were compared with a sample, of late.
    drafts_a_step: drafts that a step is expected to make of a request; at least 1.
    """

    def __init__(self, proposals: int):
        self.counts = np.zeros((2, proposals))
        self.drafts_a_step = 1.0

    def count(self, outcomes: Sequence[Sequence[int]]) -> None:
        """A round's outcomes, summed over its requests; [2][proposals], as `counts` has them."""
        self.counts = DECAY * self.counts + np.array(outcomes)
        true, compared = self.counts
        self.drafts_a_step = 1 + float(np.cumprod(true / (compared + PRIOR_COMPARED)).sum())

    def drafts(self, lengths: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """[rounds] drafts that a request is expected to be given, of `lengths` that are verified, by so many steps. The
        places that are left have proposals that no step has sampled."""
        return np.minimum(lengths, steps * self.drafts_a_step)

    def steps(self, length: int) -> int:
        """Draft steps that are expected to make so many drafts."""
        return math.ceil(length / self.drafts_a_step)
