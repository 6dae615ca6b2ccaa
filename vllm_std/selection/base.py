"""What a selection policy sees of a round, and what it answers."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vllm_std.mask import cdiv


@dataclass
class Observation:
    """The dense pass that has just verified, as a policy may look at it.

    queries: [layers, reqs, window, query heads, head size], with RoPE; rows of the tokens last fed to the target.
    num_queries: [reqs] how many of them, from the first, were verified.
    length: [reqs] verified tokens; max_length: the same on the host, an upper bound (no sync with the device).
    slots: [reqs] rows of vLLM's request state, -1 where a request does not draft; drafting: the same on the host.
    prompt_done: [reqs] on the host, requests whose prompt this pass has completed.
    block_table: [reqs, blocks] int32. keys(layer, block ids [m]) -> [m, KV heads, block size, head size].
    scales: softmax scale of each layer.
    """

    queries: Tensor
    num_queries: Tensor
    length: Tensor
    max_length: np.ndarray
    slots: Tensor
    drafting: np.ndarray
    prompt_done: np.ndarray
    block_table: Tensor
    block_size: int
    keys: Callable[[int, Tensor], Tensor]
    scales: list[float]

    @property
    def score_shape(self) -> tuple[int, int, int]:
        """(layers, requests, blocks that the longest of them can fill)."""
        most = cdiv(int(self.max_length.max()), self.block_size)
        return self.queries.shape[0], self.length.shape[0], most

    def zeros(self) -> Tensor:
        return torch.zeros(self.score_shape, device=self.queries.device)


class Policy(ABC):
    """Scores blocks; the caller keeps the best K of them (`mask.MaskShape.choose`)."""

    #: Whether `Observation.queries` must be kept during the target's pass.
    needs_queries = True

    def __init__(self, max_num_reqs: int, num_layers: int, top: int, device: torch.device):
        """top: blocks that will be chosen, for policies that remember a choice."""

    @abstractmethod
    def score(self, seen: Observation) -> Tensor:
        """[layers, reqs, blocks] float32, higher is better, one mask for all heads of a layer."""
