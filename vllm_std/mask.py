"""The block mask: which KV blocks of its own context a request attends to while it drafts.

Along the context of a request the mask keeps, in this order,

    [ sink blocks | the top-K scored blocks | recent window ... drafted tail ]

so its length in tokens is the same for all layers of a request and one `seq_lens` serves them all; only the block
ids differ. Keys are cached with RoPE applied, hence the kept blocks can be attended to in place, in increasing order.
"""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Whole = TypeVar("Whole", int, np.ndarray, Tensor)


def cdiv(a: Whole, b: int) -> Whole:
    """a / b, rounded up."""
    return -(-a // b)


def least_tokens(sink: int, recent: int, block_size: int) -> int:
    """Tokens of the smallest budget, which leaves one block to choose; sink, recent: tokens."""
    return (cdiv(sink, block_size) + cdiv(recent, block_size) + 1) * block_size


def _what_works(sink: int, recent: int, block_size: int, max_model_len: int) -> str:
    """For an error message: options that leave a block to choose within `max_model_len`."""
    for size in (64, 32, 16):
        least = least_tokens(sink, recent, size)
        if size < block_size and least <= max_model_len:
            return f"--block-size {size} with top_k >= {least}."
    return f"a sink and recent of so few tokens that they leave one block of max_model_len={max_model_len}."


@dataclass(frozen=True)
class MaskShape:
    """The part of the mask that does not depend on scores.

    block_size: tokens in one KV block of the attention kernel.
    sink, top: blocks kept at the start of the context, and most blocks chosen between sink and recent window.
    recent: tokens before the drafted ones that are always kept, rounded up to blocks.
    share, floor: where the budget is a share of the context, that share, and the least tokens of it; else 0.
    """

    block_size: int
    sink: int
    top: int
    recent: int
    share: float = 0.0
    floor: int = 0

    @classmethod
    def plan(
        cls, top_k: int | float, sink: int, recent: int, block_size: int, max_model_len: int, floor: int = 0
    ) -> "MaskShape":
        """Split a budget into blocks. Raises ValueError when no block is left to choose.

        top_k: tokens, or as a float the share of a request's context, which is then at least `floor` tokens.
        sink, recent: tokens. block_size: tokens. max_model_len: tokens of a request at most.
        """
        sink_blocks, recent_blocks = cdiv(sink, block_size), cdiv(recent, block_size)
        share = top_k if isinstance(top_k, float) else 0.0
        tokens = max(floor, cdiv(int(share * max_model_len * 1024), 1024)) if share else int(top_k)
        top = cdiv(tokens, block_size) - sink_blocks - recent_blocks
        if top < 1:
            least = least_tokens(sink, recent, block_size)
            given = f"top_k={top_k}" + (f" of max_model_len={max_model_len}, {tokens} tokens," if share else "")
            raise ValueError(
                f"{given} leaves no block to choose: with KV blocks of {block_size} tokens, sink={sink} and "
                f"recent={recent} already take {least - block_size} tokens. Use "
                + (f"top_k >= {least}, or " if least <= max_model_len else "")
                + _what_works(sink, recent, block_size, max_model_len)
            )
        return cls(block_size, sink_blocks, top, recent, share, floor)

    @property
    def num_blocks(self) -> int:
        """Blocks of the largest budget: sink + top-K + full blocks of the recent window."""
        return self.sink + self.top + cdiv(self.recent, self.block_size)

    def width(self, draft_length: int) -> int:
        """Columns of a masked block table with room for so long a draft; a multiple of 16, so that rows are aligned."""
        return 16 * cdiv(self.sink + self.top + cdiv(self.recent + draft_length, self.block_size) + 2, 16)

    @property
    def max_length(self) -> int:
        """Most verified tokens a masked request can hold."""
        return (self.sink + self.top + 1) * self.block_size + self.recent

    def budget(self, length: Tensor) -> Tensor:
        """[reqs] int64 blocks to choose in contexts of `length`, [reqs] tokens.

        At least one, so that a small share still follows the answer.
        """
        if not self.share:
            return torch.full_like(length, self.top, dtype=torch.int64)
        tokens = (length.double() * self.share).clamp(min=self.floor)
        blocks = (tokens / self.block_size).ceil().long()
        return (blocks - self.sink - cdiv(self.recent, self.block_size)).clamp(1, self.top)
