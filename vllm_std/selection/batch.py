"""A batch as selection sees it: the buffers that kernels read, and what a dense pass has left behind."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from vllm_std.mask import MaskShape, cdiv
from vllm_std.patches.copies import async_tensor_h2d


class BatchBuffers:
    """The requests of a batch, at addresses that a CUDA graph can hold (compare vLLM's `InputBuffers`).

    slots: [max_num_reqs] int32, rows of vLLM's request state (its `idx_mapping`).
    context_lens: [max_num_reqs] int32, verified tokens in the KV cache; 0 for a row that does not draft.
    scored_lens: the same for rows whose blocks are to be scored in this round; 0 for the others.
    last_query: [max_num_reqs] int32, which of its observation queries is that of the token verified last.
    block_table: [max_num_reqs, blocks] int32, vLLM's.
    """

    def __init__(self, block_table: Tensor):
        self.block_table = block_table
        zeros = torch.zeros(4, len(block_table), dtype=torch.int32, device=block_table.device)
        self.slots, self.context_lens, self.scored_lens, self.last_query = zeros

    def load(self, slots: Tensor, context_lens: Tensor, last_query: Tensor, flags: Tensor) -> None:
        """Take in a batch of [reqs] requests; flags: [2, reqs] int32, 1 for who drafts, and for whom to score."""
        reqs = len(context_lens)
        self.slots[:reqs] = slots
        self.last_query[:reqs] = last_query
        self.context_lens[:reqs], self.scored_lens[:reqs] = context_lens * flags
        self.context_lens[reqs:] = 0
        self.scored_lens[reqs:] = 0

    def clear(self) -> None:
        """No request drafts."""
        self.context_lens.zero_()
        self.scored_lens.zero_()


@dataclass(frozen=True)
class Pairs:
    """Consecutive (layer, request) pairs of a batch: pair i is of layer i // num_rows and row i % num_rows.

    num_rows: rows of the batch. first: number of the first pair. count: of pairs.
    """

    num_rows: int
    first: int
    count: int


@dataclass
class DensePass:
    """What the dense pass that has just verified has left behind for selection.

    slots: [reqs] rows of vLLM's request state.
    queries: [layers, reqs, window, query heads, head size], the observation queries, with RoPE applied.
    last_query: [reqs], which of them is that of the token verified last.
    context_lens: [reqs] int64, verified tokens in the KV cache.
    max_context_lens: [reqs] on the host, upper bounds of them, which need no sync with the device.
    block_table: [reqs, blocks] int32.
    read_keys: (layer, physical blocks [n]) -> [n, KV heads, block size, head size].
    mask: block size, and which blocks are to be scored.
    scales: [layers] softmax scales.
    """

    slots: Tensor
    queries: Tensor
    last_query: Tensor
    context_lens: Tensor
    max_context_lens: np.ndarray
    block_table: Tensor
    read_keys: Callable[[int, Tensor], Tensor]
    mask: MaskShape
    scales: list[float]

    def only(self, requests: np.ndarray) -> "DensePass":
        """The same of some of the requests; requests: [reqs] bool on the host."""
        rows = async_tensor_h2d(requests.nonzero()[0], self.context_lens.device)
        return replace(
            self,
            slots=self.slots[rows],
            queries=self.queries[:, rows] if self.queries.numel() else self.queries,  # not every policy has them kept
            last_query=self.last_query[rows],
            context_lens=self.context_lens[rows],
            max_context_lens=self.max_context_lens[requests],
            block_table=self.block_table[rows],
        )

    @property
    def num_blocks(self) -> int:
        """Blocks that the longest of the requests can fill."""
        return cdiv(int(self.max_context_lens.max()), self.mask.block_size)

    def zero_scores(self) -> Tensor:
        """[reqs, num_blocks] float32."""
        return torch.zeros(len(self.context_lens), self.num_blocks, device=self.context_lens.device)
