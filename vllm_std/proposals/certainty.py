"""Draft logits of drafts that were not sampled.

They count as drawn with certainty, so that verification accepts one with the probability that the target gives it, and
the output keeps the target's distribution.
"""

import torch
from torch import Tensor


def set_certain(logits: Tensor, requests: Tensor, steps: Tensor, tokens: Tensor | int) -> None:
    """logits: [max_num_reqs, gamma, vocabulary] draft logits, written in place: the lowest value but for `tokens`.

    requests, steps: int64 rows of `logits` and draft positions, which broadcast against each other and `tokens`.
    """
    logits[requests, steps] = torch.finfo(logits.dtype).min
    logits[requests, steps, tokens] = 0
