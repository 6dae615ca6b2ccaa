"""The scores of `verify`: attention of the token verified last to each block, from key summaries and some keys.

score_summaries    log-sum-exp of each complete block by query head, as if each key were the mean of its granule; not
                   where all keys will be read
block_shares       softmax over blocks, summed over heads
choose_candidates  the blocks whose keys are read: sink, recent window and candidates (`reads`)
score_keys         the exact log-sum-exp of those blocks
block_shares       again; then `Ranking` keeps the best

Each is a launch over (layer, request) pairs, of as many as the workspace holds; nothing waits for the host, and grids
depend on the number of rows alone, so that a CUDA graph holds them.
"""

import math
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from vllm_std.mask import MaskShape, cdiv
from vllm_std.selection import native, tiles
from vllm_std.selection.batch import BatchBuffers, Pairs
from vllm_std.selection.kernels import block_shares, choose_candidates, score_keys, score_summaries
from vllm_std.selection.keys import TRITON_DTYPES, KeyCache, by_kernel, interpreted
from vllm_std.selection.ranking import Ranking
from vllm_std.selection.reads import KeyReads
from vllm_std.selection.workspace import PARTS, Workspace, pairs_at_once


class Scorer:
    """Scores blocks for `verify`.

    means: `KeySummaries.means`; queries: `QueryWindow.kept`; scales: [layers] softmax scales; width: blocks of a
    request at most.
    """

    def __init__(self, mask: MaskShape, means: Tensor, queries: Tensor, scales: Tensor, width: int):
        self.mask, self.means, self.queries, self.scales = mask, means, queries, scales
        layers, reqs, self.window, self.heads, _ = queries.shape
        self.reads = KeyReads.plan(mask)
        pairs = pairs_at_once(layers, reqs, self.heads, width, means.dtype)
        self.workspace = Workspace(self.reads, pairs, self.heads, means.shape[2], width, means)

    def run(self, cache: KeyCache, batch: BatchBuffers, num_rows: int, ranking: Ranking) -> None:
        """Score the first `num_rows` rows of a batch, where `batch.scored_lens` is not 0; `ranking` keeps the best."""
        if not by_kernel(self.means):
            return native.score(self, cache, batch, num_rows, ranking)
        total = len(self.means) * num_rows
        for first in range(0, total, self.workspace.pairs):
            pairs = Pairs(num_rows, first, min(self.workspace.pairs, total - first))
            self._score_summaries(cache, batch, pairs)
            self._block_shares(cache, batch, pairs, with_keys=False)
            self._choose_candidates(batch, pairs)
            self._score_keys(cache, batch, pairs)
            self._block_shares(cache, batch, pairs, with_keys=True)
            ranking.keep_top_k(self.workspace.scores, batch, pairs)

    def _score_summaries(self, cache: KeyCache, batch: BatchBuffers, pairs: Pairs) -> None:
        granule, work = self.mask.block_size // self.means.shape[3], self.workspace
        # So many that means of later tiles are on their way while one is multiplied. More would not fit the shared
        # memory of many GPUs, 99 KiB, where a key takes more than 256 bytes.
        stages = 5 if cache.sizes["PADDED"] * self.means.itemsize <= 256 else 2
        score_summaries[self._grid(cache, pairs)](
            work.log_sums, work.part_max, work.part_sum, self.means, *self._tensors(batch),
            **self._numbers(batch, pairs), layer_stride=self.means.stride(0), GRANULE=granule,
            LOG_GRANULE=math.log(granule), TILE=1024 if interpreted(self.means) else 64, **cache.sizes,
            **self._constants(cache), num_stages=stages,
        )  # fmt: skip

    def _choose_candidates(self, batch: BatchBuffers, pairs: Pairs) -> None:
        work, mask = self.workspace, self.mask
        choose_candidates[pairs.count,](
            work.scores, work.read_blocks, batch.scored_lens, width=work.width, num_rows=pairs.num_rows,
            first=pairs.first, SINK=mask.sink, RECENT=mask.recent, BLOCK_SIZE=mask.block_size, **self.reads.constants,
            **tiles.of_scores(work.scores),
        )  # fmt: skip

    def _score_keys(self, cache: KeyCache, batch: BatchBuffers, pairs: Pairs) -> None:
        padded, work = triton.next_power_of_2(self.mask.block_size), self.workspace
        score_keys[self._grid(cache, pairs)](
            *cache.arguments, work.log_sums, work.part_max, work.part_sum, work.read_blocks, *self._tensors(batch),
            **self._numbers(batch, pairs), TILE=max(1, (4096 if interpreted(self.means) else 64) // padded),
            PADDED_BLOCK=padded, **cache.constants, **self._constants(cache), num_stages=4,
        )  # fmt: skip

    def _block_shares(self, cache: KeyCache, batch: BatchBuffers, pairs: Pairs, with_keys: bool) -> None:
        work = self.workspace
        block_shares[self._splits(pairs.count), pairs.count](
            work.scores, work.part_max, work.part_sum, work.log_sums, batch.scored_lens, first=pairs.first,
            num_rows=pairs.num_rows, width=work.width, parts=self._splits(pairs.count * cache.kv_heads),
            WITH_KEYS=with_keys, PARTS=PARTS, HEADS=self.heads, GROUP=self.heads // cache.kv_heads,
            PADDED_HEADS=triton.next_power_of_2(self.heads), BLOCK_SIZE=self.mask.block_size,
            TILE=1024 if interpreted(self.means) else 64, **self.reads.constants,
        )  # fmt: skip

    # What `score_summaries` and `score_keys` are launched with.

    def _grid(self, cache: KeyCache, pairs: Pairs) -> tuple[int, int, int]:
        """KV heads come first: those of a block lie side by side, and are read at the same time."""
        return cache.kv_heads, self._splits(pairs.count * cache.kv_heads), pairs.count

    def _splits(self, programs: int) -> int:
        """Programs that share the work of one, where there are so many: enough to keep a GPU busy, one on a CPU."""
        return max(1, min(PARTS, cdiv(8 * tiles.processors(self.means), programs)))

    def _tensors(self, batch: BatchBuffers) -> tuple[Tensor, ...]:
        return batch.scored_lens, batch.last_query, self.queries, self.scales, batch.block_table

    def _numbers(self, batch: BatchBuffers, pairs: Pairs) -> dict[str, int]:
        rows = {"first": pairs.first, "num_rows": pairs.num_rows, "max_rows": self.queries.shape[1]}
        return rows | {"width": self.workspace.width, "table_stride": batch.block_table.stride(0)}

    def _constants(self, cache: KeyCache) -> dict[str, Any]:
        group = self.heads // cache.kv_heads
        # Triton's interpreter cannot multiply 16-bit matrices, nor would it be faster.
        dot = tl.float32 if interpreted(self.means) else TRITON_DTYPES[self.queries.dtype]
        sizes = {"WINDOW": self.window, "HEADS": self.heads, "GROUP": group, "PARTS": PARTS}
        return sizes | {"PADDED_GROUP": max(16, triton.next_power_of_2(group)), "DOT": dot} | self.reads.constants
