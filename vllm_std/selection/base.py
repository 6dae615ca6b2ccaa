"""What a selection policy sees of a round, and what it answers."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from vllm_std.mask import MaskShape, cdiv


@dataclass
class Observation:
    """The dense pass that has just verified, as selection looks at it.

    queries: [layers, reqs, window, query heads, head size], with RoPE; rows of the tokens last fed to the target.
    num_queries: [reqs] how many of them, from the first, were verified.
    length: [reqs] int64 verified tokens; max_length: the same on the host, an upper bound (no sync with the device).
    slots: [reqs] int64 rows of vLLM's request state; slots_np: the same on the host.
    drafting, prompt_done: [reqs] bool on the host, who drafts, and whose prompt this pass has completed.
    block_table: [reqs, blocks] int32. keys(layer, block ids [m]) -> [m, KV heads, block size, head size].
    means: key summaries (`summaries.KeySummaries.means`) of the policies that need them.
    mask: block size, and which blocks are candidates. scales: softmax scale of each layer.
    """

    queries: Tensor
    num_queries: Tensor
    length: Tensor
    max_length: np.ndarray
    slots: Tensor
    slots_np: np.ndarray
    drafting: np.ndarray
    prompt_done: np.ndarray
    block_table: Tensor
    keys: Callable[[int, Tensor], Tensor]
    means: Tensor | None
    mask: MaskShape
    scales: list[float]

    def on_device(self, chosen: np.ndarray) -> Tensor:
        """[n] int64 indices of the requests that `chosen`, [reqs] bool on the host, holds."""
        return torch.from_numpy(chosen.nonzero()[0]).to(self.length.device, non_blocking=True)

    def of(self, chosen: np.ndarray) -> "Observation":
        """The same of some requests only; chosen: [reqs] bool on the host."""
        if chosen.all():
            return self
        at = self.on_device(chosen)
        return replace(
            self, queries=self.queries[:, at], num_queries=self.num_queries[at], length=self.length[at],
            max_length=self.max_length[chosen], slots=self.slots[at], slots_np=self.slots_np[chosen],
            drafting=self.drafting[chosen], prompt_done=self.prompt_done[chosen], block_table=self.block_table[at],
        )  # fmt: skip

    @property
    def num_blocks(self) -> int:
        """Blocks that the longest of the requests can fill."""
        return cdiv(int(self.max_length.max()), self.mask.block_size)

    def zeros(self) -> Tensor:
        """[reqs, blocks] float32."""
        return torch.zeros(*self.length.shape, self.num_blocks, device=self.length.device)


class Policy(ABC):
    """Scores blocks; `ranking.Ranking` keeps the best of them."""

    needs_queries = True
    needs_summaries = False

    def due(self, rounds: np.ndarray, refresh: int) -> np.ndarray:
        """[reqs] bool, whom to score; rounds: [reqs] how often each has drafted since its prompt was complete."""
        return rounds % refresh == 0

    @abstractmethod
    def score(self, seen: Observation, layer: int) -> Tensor:
        """[reqs, blocks] float32, higher is better: one mask for all heads of a layer."""
