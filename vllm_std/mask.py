"""The block mask: which KV blocks of its own context a request attends to while it drafts.

Along the context of a request the mask keeps, in this order,

    [ sink blocks | the top-K scored blocks | recent window ... drafted tail ]

so its length in tokens is the same for all layers of a request and one `seq_lens` serves them all; only the block
ids differ. Keys are cached with RoPE applied, hence the kept blocks can be attended to in place, in increasing order.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


@dataclass(frozen=True)
class MaskShape:
    """The part of the mask that does not depend on scores.

    block_size: tokens in one KV block of the attention kernel.
    sink, top: blocks kept at the start of the context, and blocks chosen by score between sink and recent window.
    recent: tokens before the drafted ones that are always kept, rounded up to blocks.
    """

    block_size: int
    sink: int
    top: int
    recent: int

    @classmethod
    def plan(cls, top_k: int, sink: int, recent: int, block_size: int) -> "MaskShape":
        """Split a budget of `top_k` tokens into blocks. Raises ValueError when no block is left to choose."""
        sink_blocks, recent_blocks = cdiv(sink, block_size), cdiv(recent, block_size)
        top = cdiv(top_k, block_size) - sink_blocks - recent_blocks
        if top < 1:
            least = (sink_blocks + recent_blocks + 1) * block_size
            raise ValueError(
                f"top_k={top_k} leaves no block to choose: with KV blocks of {block_size} tokens, sink={sink} and "
                f"recent={recent} already take {least - block_size} tokens. Use top_k >= {least}, or a smaller "
                f"sink, recent or --block-size."
            )
        return cls(block_size, sink_blocks, top, recent)

    @property
    def num_blocks(self) -> int:
        """Blocks of the budget: sink + top-K + full blocks of the recent window."""
        return self.sink + self.top + cdiv(self.recent, self.block_size)

    def width(self, draft_length: int) -> int:
        """Columns of a masked block table that drafts `draft_length` tokens."""
        return self.sink + self.top + cdiv(self.recent + draft_length, self.block_size) + 2

    @property
    def max_length(self) -> int:
        """Most verified tokens a masked request can hold."""
        return (self.sink + self.top + 1) * self.block_size + self.recent

    def first_recent(self, length: Tensor) -> Tensor:
        """[reqs] index of the block in which the recent window begins; `length`: [reqs] verified tokens."""
        return (length - self.recent).clamp(min=0) // self.block_size

    def dropped_tokens(self, length: Tensor) -> Tensor:
        """[reqs] tokens the mask leaves out; what a draft step attends to is the true length less these."""
        first_recent = self.first_recent(length)
        return (first_recent - self.sink - self.top).clamp(min=0) * self.block_size

    def choose(self, scores: Tensor, length: Tensor) -> Tensor:
        """The top-K blocks by score, in increasing order.

        scores: [layers, reqs, blocks], any float dtype; only blocks between sink and recent window are candidates.
        Returns [layers, reqs, top] int64 block indices within the request; `blocks` where candidates ran out.
        """
        num_blocks = scores.shape[-1]
        index = torch.arange(num_blocks, device=scores.device)
        candidate = (index >= self.sink) & (index < self.first_recent(length)[:, None])
        scores = scores.masked_fill(~candidate, -torch.inf)
        best = scores.topk(min(self.top, num_blocks), dim=-1)
        chosen = best.indices.masked_fill(best.values == -torch.inf, num_blocks).sort(dim=-1).values
        return torch.nn.functional.pad(chosen, (0, self.top - chosen.shape[-1]), value=num_blocks)

    def table(self, chosen: Tensor, block_table: Tensor, length: Tensor, width: int) -> Tensor:
        """Masked block tables.

        chosen: [layers, reqs, top] from `choose`; block_table: [reqs, blocks] int32, the request's own blocks.
        Returns [layers, reqs, width] int32 block ids. Columns past the mask repeat blocks of the same request.
        """
        column = torch.arange(width, device=chosen.device)
        first_recent = self.first_recent(length)[:, None]
        sink = first_recent.clamp(max=self.sink)
        kept = (first_recent - sink).clamp(max=self.top)
        rank = column - sink  # [reqs, width]: position among the chosen blocks
        logical = torch.where(rank < 0, column, first_recent + rank - kept)
        picked = chosen.gather(-1, rank.clamp(0, self.top - 1).expand(chosen.shape[0], -1, -1))
        logical = torch.where((rank >= 0) & (rank < kept), picked, logical).clamp(max=block_table.shape[1] - 1)
        return block_table.expand(chosen.shape[0], -1, -1).gather(-1, logical)
