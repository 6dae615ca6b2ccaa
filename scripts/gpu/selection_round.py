"""One round of selection over random keys, as an engine of a 7B shape would have it."""

from dataclasses import dataclass

import numpy as np
import torch

from vllm_std.mask import MaskShape, cdiv
from vllm_std.selection import BatchBuffers, KeySummaries, QueryWindow, ranking, scoring
from vllm_std.selection.keys import KeyCache
from vllm_std.selection.reading import Reading

HEADS = 28  # query heads
KV_HEADS = 4
SIZE = 128  # of a head
BLOCK = 16  # tokens of a KV block
TOP_K = 1024  # tokens
SINK = 16  # tokens
RECENT = 64  # tokens
GAMMA = 5  # drafts, of which three were verified
ROOM = 64  # tokens beyond the context


@dataclass
class SelectionRound:
    """Of `batch` requests that all draft; keys lie as vLLM's FlashAttention has them."""

    batch: int
    context: int
    layers: int
    device: torch.device

    def __post_init__(self):
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.mask = MaskShape.plan(TOP_K, SINK, RECENT, BLOCK, self.context)
        self.columns = cdiv(self.context + ROOM, BLOCK)
        self.blocks = self.batch * self.columns
        self.cache = self._random_keys()
        self.buffers = self._random_batch()
        self.window = QueryWindow((self.layers, self.batch, GAMMA + 1, HEADS, SIZE), self.dtype, self.device)
        self.starts = torch.arange(self.batch + 1, **self._whole) * (GAMMA + 1)
        self.query = torch.randn(self.batch * (GAMMA + 1), HEADS, SIZE, dtype=self.dtype, device=self.device)
        self.summaries = KeySummaries((self.layers, self.blocks, KV_HEADS, 1, SIZE), self.dtype, self.device)
        self.summarise(self.columns)
        self.ranking = ranking.Ranking(self.mask, self.layers, self.batch, self.context + ROOM, self.device)
        scales = torch.full((self.layers,), SIZE**-0.5, device=self.device)
        self.scorer = scoring.Scorer(self.mask, self.summaries.means, self.window.kept, scales, self.columns)
        self.tables = torch.zeros(self.layers, self.batch, self.mask.width(GAMMA), **self._whole)
        self.seq_lens = torch.zeros(self.batch, **self._whole)

    @property
    def _whole(self) -> dict:
        return {"dtype": torch.int32, "device": self.device}

    def _random_keys(self) -> KeyCache:
        shape = (self.blocks, BLOCK, KV_HEADS, 2 * SIZE)
        stored = [
            torch.empty(shape, dtype=self.dtype, device=self.device).normal_().transpose(1, 2)
            for _ in range(self.layers)
        ]
        order = torch.arange(BLOCK)[:, None] * stored[0].stride(2) + torch.arange(SIZE)
        return KeyCache(stored, order, plain=True, scales=[1.0] * self.layers)

    def _random_batch(self) -> BatchBuffers:
        table = torch.randperm(self.blocks, device=self.device).view(self.batch, self.columns).int()
        buffers, rows = BatchBuffers(table), torch.arange(self.batch, **self._whole)
        flags = torch.ones(2, self.batch, **self._whole)
        buffers.load(rows, torch.full_like(rows, self.context), torch.full_like(rows, 3), flags)
        return buffers

    def capture_queries(self) -> None:
        """What the dense pass adds."""
        for layer in range(self.layers):
            self.window.capture(layer, self.query, self.starts)

    def summarise(self, newest: int) -> None:
        """Blocks of each request; a round completes two at most."""
        complete = np.full(self.batch, newest)
        self.summaries.update(self.cache, self.buffers.context_lens, self.buffers.block_table, complete)

    def select(self) -> None:
        """What a CUDA graph of selection holds."""
        self.scorer.run(self.cache, self.buffers, self.batch, self.ranking)
        self.ranking.fill(self.tables, self.seq_lens, self.buffers, self.batch)

    def least_ms(self, bandwidth: float) -> float:
        """In which the bytes of a round can be moved once; bandwidth: bytes/s, the full rate of the memory."""
        key_bytes = KV_HEADS * SIZE * self.window.kept.element_size()
        means = self.context // BLOCK * key_bytes
        candidates = int(Reading.of(self.mask).blocks(torch.tensor(cdiv(self.context, BLOCK)))) * BLOCK * key_bytes
        scores = 3 * HEADS * self.columns * 4  # float32, written once, and read twice for the shares of heads
        return 1e3 * self.layers * self.batch * (means + candidates + scores) / bandwidth
