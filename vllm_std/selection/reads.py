"""What scoring reads of a request: the mean keys of all its blocks, and all keys of some blocks.

All keys are read of sink and recent window, which hold most of the attention of many heads, and of candidates: the best
of the other blocks by their mean keys. A mean underrates a block with one outstanding key, but it does find it.

Where a good part of the context is chosen anyway there is little to find, and to read all keys would cost as much as to
attend to them. So the first blocks of a context, `SPARED_PER_CHOSEN` for each block to choose, bring no candidate, and
each further block brings one, up to `CANDIDATES_PER_CHOSEN` for each block to choose.

Needs neither Triton nor vLLM: `roofline` and `vllm-std plan` use it too.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from vllm_std.mask import MaskShape, cdiv

CANDIDATES_PER_CHOSEN = 3  # candidates at most, for each block to choose
SPARED_PER_CHOSEN = 2  # blocks of a context that bring no candidate, for each block to choose
GRANULE = 16  # tokens of one mean key: 1/32 of the KV bytes, where keys and values have the model's dtype


def granule(block_size: int) -> int:
    """Tokens of one mean key where a KV block holds `block_size` tokens."""
    return math.gcd(GRANULE, block_size)


def share_of_kv(itemsize: int, cached_itemsize: int, block_size: int) -> float:
    """Bytes of key summaries for each byte of KV cache.

    itemsize: bytes of a value of the model's dtype; cached_itemsize: of a cached key or value.
    """
    return itemsize / (2 * cached_itemsize * granule(block_size))


@dataclass(frozen=True)
class KeyReads:
    """How many blocks of a request have all their keys read.

    most: of any request. always: blocks of sink and recent window. spared: blocks of a context that bring no candidate.
    """

    most: int
    always: int
    spared: int

    @classmethod
    def plan(cls, mask: MaskShape) -> "KeyReads":
        always = mask.sink + cdiv(mask.recent, mask.block_size) + 1
        return cls(CANDIDATES_PER_CHOSEN * mask.top + always, always, SPARED_PER_CHOSEN * mask.top)

    def blocks(self, written: Tensor) -> Tensor:
        """[reqs] blocks whose keys are read, of requests that have filled or begun so many blocks; whole numbers."""
        candidates = (written - self.spared).clamp(min=0)
        return (candidates + self.always).clamp(max=self.most).minimum(written)

    @property
    def constants(self) -> dict[str, int]:
        """The same as kernels take it."""
        return {"MOST_READ": self.most, "ALWAYS": self.always, "SPARED": self.spared}
