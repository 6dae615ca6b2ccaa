"""What is remembered of each request from one scoring of its blocks to the next."""

import numpy as np
import torch
from torch import Tensor

from vllm_std.mask import MaskShape

NONE = 2**40  # sorts behind every block


class Ranking:
    """The best blocks of each request and layer, by row of vLLM's request state.

    Blocks that have left the recent window since the last scoring were no candidates then: all of them are kept, in
    place of the lowest ranked. So a mask scored once still follows the end of a growing answer (paper, section 3.2),
    and one never scored is sink and recent blocks alone (StreamingLLM, arXiv 2309.17453).
    """

    def __init__(
        self, shape: MaskShape, num_layers: int, max_num_reqs: int, coverage: float | None, device: torch.device
    ):
        self.shape, self.coverage = shape, coverage
        self.blocks = torch.full((num_layers, max_num_reqs, shape.top), NONE, device=device)  # best first
        self.frontier = torch.zeros(max_num_reqs, dtype=torch.int64, device=device)  # blocks below it were candidates
        self.enough = torch.full((max_num_reqs,), shape.top, device=device)
        self.rounds = np.zeros(max_num_reqs, dtype=np.int64)  # drafted since the prompt was complete; on the host

    def remember(self, layer: int, slots: Tensor, scores: Tensor, length: Tensor) -> None:
        """Rank blocks; slots: [reqs] rows of the request state, scores: [reqs, blocks] of a layer, length: [reqs]."""
        candidate = self.shape.candidates(length, scores.shape[-1])
        best = scores.masked_fill(~candidate, -torch.inf).topk(min(self.shape.top, scores.shape[-1]), dim=-1)
        self.blocks[layer, slots] = NONE
        self.blocks[layer, slots, : best.indices.shape[-1]] = best.indices.masked_fill(best.values == -torch.inf, NONE)
        self.frontier[slots] = self.shape.first_recent(length)
        if self.coverage is not None:
            rest = (scores * ~candidate).sum(-1, keepdim=True)
            enough = self._covering(best.values.clamp(min=0), rest, scores.sum(-1, keepdim=True))
            self.enough[slots] = enough if layer == 0 else enough.maximum(self.enough[slots])

    def _covering(self, best: Tensor, rest: Tensor, total: Tensor) -> Tensor:
        """[reqs] fewest blocks that hold, with what is always kept, the wanted share of attention.

        best: [reqs, top] attention mass, falling; rest, total: [reqs, 1] mass outside the candidates, and in all.
        """
        before = rest + best.cumsum(-1) - best
        return (before < self.coverage * total).sum(-1).clamp(min=1)

    def choose(self, slots: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """([layers, reqs, top] block indices, increasing, NONE behind them; [reqs] the budget: how many at most)."""
        budget = self.shape.budget(length).minimum(self.enough[slots])
        first_recent = self.shape.first_recent(length)
        fresh = (first_recent - self.frontier[slots].clamp(min=self.shape.sink)).clamp(min=0).minimum(budget)
        column = torch.arange(self.shape.top, device=length.device)
        budget_, old = budget[:, None], (budget - fresh)[:, None]
        newest = (first_recent[:, None] - budget_ + column).masked_fill(column >= budget_, NONE)
        return torch.where(column < old, self.blocks[:, slots], newest).sort(-1).values, budget
