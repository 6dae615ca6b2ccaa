"""What selection sees of a round."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from vllm_std.mask import MaskShape, cdiv
from vllm_std.patches.copies import async_tensor_h2d


class Round:
    """The requests of a batch as the kernels of a round read them, at addresses that a CUDA graph can hold.

    [max_num_reqs] int32: slots: row of vLLM's request state; length: verified tokens, 0 for a row that does not draft;
    scored: the same for those whose blocks are to be scored, else 0; last: row of the query verified last among the
    queries kept. table: [max_num_reqs, blocks] int32, vLLM's block table.
    """

    def __init__(self, table: Tensor):
        self.table = table
        zeros = torch.zeros(4, len(table), dtype=torch.int32, device=table.device)
        self.slots, self.length, self.scored, self.last = zeros

    def begin(self, slots: Tensor, length: Tensor, last: Tensor, flags: Tensor) -> None:
        """slots, length, last: [reqs]; flags: [2, reqs] int32, 1 for who drafts, and whom to score."""
        reqs = len(length)
        self.slots[:reqs], self.last[:reqs] = slots, last
        self.length[:reqs], self.scored[:reqs] = length * flags
        self.length[reqs:], self.scored[reqs:] = 0, 0

    def clear(self) -> None:
        """Nobody drafts."""
        self.length.zero_()
        self.scored.zero_()


@dataclass
class Observation:
    """The dense pass that has just verified, as the policies without kernels of their own look at it.

    slots: [reqs] rows of vLLM's request state.
    queries: [layers, reqs, window, query heads, head size], with RoPE; last: [reqs] row of the one verified last.
    length: [reqs] int64 verified tokens; max_length: the same on the host, an upper bound (no sync with the device).
    block_table: [reqs, blocks] int32. keys(layer, block ids [m]) -> [m, KV heads, block size, head size].
    mask: block size, and which blocks are candidates. scales: softmax scale of each layer.
    """

    slots: Tensor
    queries: Tensor
    last: Tensor
    length: Tensor
    max_length: np.ndarray
    block_table: Tensor
    keys: Callable[[int, Tensor], Tensor]
    mask: MaskShape
    scales: list[float]

    def of(self, chosen: np.ndarray) -> "Observation":
        """The same of some requests only; chosen: [reqs] bool on the host."""
        at = async_tensor_h2d(chosen.nonzero()[0], self.length.device)
        queries = self.queries[:, at] if self.queries.numel() else self.queries  # kept by policies that need them
        return replace(
            self, slots=self.slots[at], queries=queries, last=self.last[at], length=self.length[at],
            max_length=self.max_length[chosen], block_table=self.block_table[at],
        )  # fmt: skip

    @property
    def num_blocks(self) -> int:
        """Blocks that the longest of the requests can fill."""
        return cdiv(int(self.max_length.max()), self.mask.block_size)

    def zeros(self) -> Tensor:
        """[reqs, blocks] float32."""
        return torch.zeros(*self.length.shape, self.num_blocks, device=self.length.device)


class Policy:
    """Scores blocks; `ranking.Ranking` keeps the best of them.

    A policy that is ever due has score(seen: Observation, layer) -> [reqs, blocks] float32, higher is better, not
    negative, one mask for all heads of a layer; or needs summaries, and `scoring.Scorer` scores for it.
    """

    needs_queries = True
    needs_summaries = False
    score: Callable[[Observation, int], Tensor]

    def due(self, rounds: np.ndarray, refresh: int) -> np.ndarray:
        """[reqs] bool, whom to score; rounds: [reqs] how often each has drafted since its prompt was complete."""
        return rounds % refresh == 0
