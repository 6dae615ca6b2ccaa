"""Selection put together without an engine, as `draft/setup.py` puts it together from an engine's configuration."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vllm_std.mask import MaskShape
from vllm_std.selection.batch import BatchBuffers, DensePass
from vllm_std.selection.keys import KeyCache
from vllm_std.selection.queries import QueryWindow
from vllm_std.selection.ranking import Ranking
from vllm_std.selection.reads import granule
from vllm_std.selection.scoring import Scorer
from vllm_std.selection.summaries import KeySummaries


def key_cache(
    caches: Sequence[Tensor], size: int, plain: bool = True, scales: Sequence[float] | None = None
) -> KeyCache:
    """caches: [layers] of [blocks, KV heads, block size, at least `size`], keys first in the last dimension."""
    tokens = torch.arange(caches[0].shape[2])[:, None] * caches[0].stride(2)
    return KeyCache(list(caches), tokens + torch.arange(size), plain, list(scales or [1.0] * len(caches)))


class Pipeline:
    """Buffers and parts of selection over a key cache; the arguments are those of an engine that has it.

    table: [reqs, blocks] int32; heads: query heads; dtype: of the model; gamma: longest draft; max_len: tokens of a
    request at most.
    """

    def __init__(
        self,
        mask: MaskShape,
        cache: KeyCache,
        table: Tensor,
        heads: int,
        dtype: torch.dtype = torch.float32,
        gamma: int = 5,
        max_len: int | None = None,
    ):
        self.mask, self.cache, self.batch = mask, cache, BatchBuffers(table)
        layers, (reqs, columns), size = len(cache.caches), table.shape, cache.order.shape[1]
        self.layers, self.reqs, self.gamma, device = layers, reqs, gamma, table.device
        self.queries = QueryWindow((layers, reqs, gamma + 1, heads, size), dtype, device)
        shape = (layers, len(cache.caches[0]), cache.kv_heads, mask.block_size // granule(mask.block_size), size)
        self.summaries = KeySummaries(shape, dtype, device)
        self.scales = torch.full((layers,), size**-0.5, device=device)
        self.scorer = Scorer(mask, self.summaries.means, self.queries.kept, self.scales, columns)
        self.ranking = Ranking(mask, layers, reqs, max_len or columns * mask.block_size, device)
        self.tables = torch.zeros(layers, reqs, mask.width(gamma), dtype=torch.int32, device=device)
        self.seq_lens = torch.zeros(reqs, dtype=torch.int32, device=device)

    def load(self, lengths: Tensor, last: Tensor | None = None, due: Tensor | None = None, slots=None, drafting=None):
        """A batch of requests of so many tokens: all of them draft and are scored where nothing else is said."""
        every, device = torch.ones(len(lengths), dtype=torch.int32), self.tables.device
        flags = torch.stack([every if one is None else one.int() for one in (drafting, due)]).to(device)
        last = torch.full((len(lengths),), self.gamma) if last is None else last
        slots = torch.arange(len(lengths)) if slots is None else slots
        self.batch.load(slots.to(device), lengths.to(device), last.to(device), flags)
        self.lengths = lengths

    def summarise(self, newest: int | np.ndarray) -> None:
        """The newest complete blocks of each request, all of one number or each of its own."""
        newest = np.full(self.reqs, newest) if isinstance(newest, int) else newest
        self.summaries.update(self.cache, self.batch.context_lens, self.batch.block_table, newest)

    def score(self, num_rows: int | None = None) -> None:
        """As `verify` does."""
        self.scorer.run(self.cache, self.batch, num_rows or self.reqs, self.ranking)

    def fill(self, num_rows: int | None = None) -> tuple[Tensor, Tensor]:
        """([layers, reqs, width] masked block tables, [reqs] tokens that the first draft step attends to)."""
        self.ranking.fill_tables(self.tables, self.seq_lens, self.batch, num_rows or self.reqs)
        return self.tables, self.seq_lens

    def dense_pass(self) -> DensePass:
        """What policies without kernels look at, after `load`."""
        reqs = len(self.lengths)
        return DensePass(
            slots=self.batch.slots[:reqs],
            queries=self.queries.kept[:, :reqs],
            last_query=self.batch.last_query[:reqs].long(),
            context_lens=self.lengths.long(),
            max_context_lens=self.lengths.numpy(),
            block_table=self.batch.block_table[:reqs],
            read_keys=self.cache.read,
            mask=self.mask,
            scales=self.scales.tolist(),
        )
