"""The selection policies a user can name in `selection`."""

import torch
from torch import Tensor

from vllm_std.selection.attention import block_attention
from vllm_std.selection.base import Observation, Policy


class Verify(Policy):
    """Re-scored every round: attention that the tokens just verified paid to each block."""

    def score(self, seen: Observation) -> Tensor:
        scores = seen.zeros()
        for row in seen.drafting.nonzero()[0]:
            block_attention(seen, row, out=scores[:, row])
        return scores


class Text(Policy):
    """The paper's (section 3.2): scored once, by the last tokens of the prompt, when the prompt is complete.

    The budget stays fixed while the answer grows: blocks generated since then are all kept, in place of the lowest
    ranked of the prompt's.
    """

    def __init__(self, max_num_reqs: int, num_layers: int, top: int, device: torch.device):
        # [layers, request state rows, top] blocks of the prompt, best first; and the blocks the prompt had.
        self.ranked = torch.zeros(num_layers, max_num_reqs, top, dtype=torch.int64, device=device)
        self.prompt_blocks = torch.zeros(max_num_reqs, dtype=torch.int64, device=device)

    def score(self, seen: Observation) -> Tensor:
        for row in seen.prompt_done.nonzero()[0]:
            self._rank(seen, row)
        slots = seen.slots.clamp(min=0)
        scores = seen.zeros()
        top = self.ranked.shape[-1]
        worth = torch.arange(top, 0, -1, device=scores.device, dtype=scores.dtype)
        ranked = self.ranked[:, slots].clamp(max=scores.shape[-1] - 1)
        scores.scatter_reduce_(-1, ranked, worth.expand_as(ranked), reduce="amax")
        generated = torch.arange(scores.shape[-1], device=scores.device) >= self.prompt_blocks[slots][:, None]
        return scores.masked_fill(generated, top + 1)

    def _rank(self, seen: Observation, row: int) -> None:
        scores = block_attention(seen, row, out=seen.zeros()[:, row])
        top = min(self.ranked.shape[-1], scores.shape[-1])
        slot = seen.slots[row]
        self.ranked[:, slot] = 0
        self.ranked[:, slot, :top] = scores.topk(top, dim=-1).indices
        self.prompt_blocks[slot] = seen.length[row] // seen.block_size


class Streaming(Policy):
    """Sink and the most recent blocks only (StreamingLLM, arXiv 2309.17453): the baseline to beat."""

    needs_queries = False

    def score(self, seen: Observation) -> Tensor:
        return seen.zeros() + torch.arange(seen.score_shape[-1], device=seen.queries.device)


class Random(Policy):
    """Blocks drawn at random every round: the control in tests."""

    needs_queries = False

    def score(self, seen: Observation) -> Tensor:
        return torch.rand(seen.score_shape, device=seen.queries.device)


POLICIES: dict[str, type[Policy]] = {"verify": Verify, "text": Text, "streaming": Streaming, "random": Random}
