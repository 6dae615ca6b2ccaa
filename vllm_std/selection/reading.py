"""How many blocks of a request `verify` scores by their keys, and not by their mean keys alone.

Always those of sink and recent window, which hold most of the mass of many heads; and of the others the best by
summary, `CANDIDATES` times the blocks to choose. A mean underrates a block with one outstanding key, but it does find
it. Where a good part of the context is chosen anyway there is little to find, and to read all the keys would cost as
much as to attend to them: so the first `ENOUGH * top` blocks of a context bring no candidate, and each further one
brings one, up to the whole number.
"""

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from vllm_std.mask import MaskShape, cdiv

CANDIDATES = 3  # times the blocks to choose: so many of the best by summary are scored by their keys
ENOUGH = 2  # times the blocks to choose: in a context of so many, means alone choose; 0: candidates in every context


@dataclass(frozen=True)
class Reading:
    """In blocks. most: read of a request at most; always: sink and recent window; spared: see above."""

    most: int
    always: int
    spared: int

    @classmethod
    def of(cls, mask: MaskShape) -> "Reading":
        always = mask.sink + cdiv(mask.recent, mask.block_size) + 1
        return cls(CANDIDATES * mask.top + always, always, ENOUGH * mask.top)

    def blocks(self, written: Tensor) -> Tensor:
        """Of requests of so many blocks, those that are read; both [reqs], of whole numbers."""
        candidates = (written - self.spared).clamp(min=0)
        return (candidates + self.always).clamp(max=self.most).minimum(written)

    @property
    def constants(self) -> dict:
        """Of the kernels."""
        return {"READ": self.most, "ALWAYS": self.always, "SPARED": self.spared}


@triton.jit
def blocks_to_read(written, READ: tl.constexpr, ALWAYS: tl.constexpr, SPARED: tl.constexpr):
    """`Reading.blocks`."""
    return tl.minimum(tl.minimum(tl.maximum(written - SPARED, 0) + ALWAYS, READ), written)
