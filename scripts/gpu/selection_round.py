"""One round of selection over random keys, as an engine of a 7B shape would have it."""

import sys
from pathlib import Path

import torch

from vllm_std.mask import MaskShape, cdiv
from vllm_std.selection.keys import KeyCache

sys.path.append(str(Path(__file__).parents[2] / "tests"))
from pipelines import Pipeline, key_cache  # noqa: E402

HEADS = 28  # query heads
KV_HEADS = 4
SIZE = 128  # of a head
BLOCK = 16  # tokens of a KV block
TOP_K = 1024  # tokens
SINK = 16  # tokens
RECENT = 64  # tokens
GAMMA = 5  # drafts, of which three were verified
ROOM = 64  # tokens beyond the context


class SelectionRound(Pipeline):
    """Of `batch` requests that all draft; keys lie as vLLM's FlashAttention has them."""

    def __init__(self, batch: int, context: int, layers: int, device: torch.device):
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        columns = cdiv(context + ROOM, BLOCK)
        blocks = batch * columns
        table = torch.randperm(blocks, device=device).view(batch, columns).int()
        mask = MaskShape.plan(TOP_K, SINK, RECENT, BLOCK, context)
        super().__init__(mask, random_keys(layers, blocks, dtype, device), table, HEADS, dtype, GAMMA)
        self.context = context
        self.starts = torch.arange(batch + 1, device=device, dtype=torch.int32) * (GAMMA + 1)
        self.query = torch.randn(batch * (GAMMA + 1), HEADS, SIZE, dtype=dtype, device=device)
        self.load(torch.full((batch,), context), last=torch.full((batch,), 3))
        self.summarise(columns)

    def capture_queries(self) -> None:
        """What the dense pass adds."""
        for layer in range(self.layers):
            self.queries.capture(layer, self.query, self.starts)

    def select(self) -> None:
        """What a CUDA graph of selection holds."""
        self.score()
        self.fill()

    def least_ms(self, bandwidth: float) -> float:
        """In which the bytes of a round can be moved once; bandwidth: bytes/s, the full rate of the memory."""
        key_bytes = KV_HEADS * SIZE * self.queries.kept.element_size()
        means = self.context // BLOCK * key_bytes
        candidates = int(self.scorer.reads.blocks(torch.tensor(cdiv(self.context, BLOCK)))) * BLOCK * key_bytes
        scores = 3 * HEADS * self.batch.block_table.shape[1] * 4  # stored once, and loaded for both softmaxes
        return 1e3 * self.layers * self.reqs * (means + candidates + scores) / bandwidth


def random_keys(layers: int, blocks: int, dtype: torch.dtype, device: torch.device) -> KeyCache:
    shape = (blocks, BLOCK, KV_HEADS, 2 * SIZE)
    stored = [torch.empty(shape, dtype=dtype, device=device).normal_().transpose(1, 2) for _ in range(layers)]
    return key_cache(stored, SIZE)
