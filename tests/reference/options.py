"""What the reference is asked for, and what it answers."""

import math
from dataclasses import dataclass, field

from torch import Tensor

GRANULE = 16  # tokens of one mean key
CANDIDATES = 3  # times the blocks to choose: so many are scored by their keys in a long context
SPARED = 2  # times the blocks to choose: the first so many blocks of a context bring no candidate


@dataclass(frozen=True)
class Options:
    """In tokens, with the meaning that they have in `vllm_std.config.StdConfig`; gamma: tokens drafted in a round."""

    top_k: int
    block_size: int
    selection: str = "verify"
    gamma: int = 5
    sink: int = 16
    recent: int = 64

    def blocks(self, tokens: int) -> int:
        """Blocks that hold so many tokens."""
        return math.ceil(tokens / self.block_size)

    @property
    def top(self) -> int:
        """Blocks to choose between sink and recent window."""
        return self.blocks(self.top_k) - self.blocks(self.sink) - self.blocks(self.recent)

    def first_recent(self, length: int) -> int:
        """The block in which the recent window of a context of `length` tokens begins."""
        return max(0, length - self.recent) // self.block_size

    def between(self, length: int) -> range:
        """The blocks between sink and recent window, of which some are chosen."""
        return range(self.blocks(self.sink), self.first_recent(length))


@dataclass
class Round:
    """One round (paper section 3).

    length: verified tokens whose keys and values are cached when it begins. chosen: [layers] sorted blocks between sink
    and recent window. scores: [layers] of [blocks] float32. drafts: token ids. accepted: how many of them the dense
    pass agreed with.
    """

    length: int
    chosen: list[list[int]]
    scores: list[Tensor]
    drafts: list[int] = field(default_factory=list)
    accepted: int = 0


@dataclass
class Decoded:
    """A finished request: its new token ids, and its rounds."""

    tokens: list[int]
    rounds: list[Round]

    @property
    def acceptance(self) -> float:
        """Accepted share of all drafted tokens."""
        drafted = sum(len(one.drafts) for one in self.rounds)
        return sum(one.accepted for one in self.rounds) / max(1, drafted)
