"""The scores of `verify`: attention of the token verified last to each block, from key summaries and a few keys.

look    a mean key stands for the keys of its granule: log-sum-exp of each complete block, by query head; not where all
        blocks will be read
shares  softmax over blocks, summed over heads
pick    the blocks worth reading: sink, recent window and candidates (`reading`)
read    the exact log-sum-exp of those blocks, from their keys
shares, then `Ranking` keeps the best

Each is a launch over (layer, request) pairs, of as many pairs as the workspace holds; nothing waits for the host, and
grids depend on the number of rows alone, so that a CUDA graph holds them.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vllm_std.mask import MaskShape, cdiv
from vllm_std.selection import native
from vllm_std.selection.batch import BatchBuffers
from vllm_std.selection.kernels import _look, _read, _shares
from vllm_std.selection.keys import TRITON_DTYPES, KeyCache, by_kernel, interpreted
from vllm_std.selection.ranking import Ranking, pick
from vllm_std.selection.reading import Reading

WORKSPACE = 2**27  # bytes of log-sum-exps at once
PARTS = 16  # programs at most that share the blocks of a pair
MOST_PROGRAMS = 65_535  # in the second and third dimension of a CUDA grid


def processors(tensor: Tensor) -> int:
    """Multiprocessors of the GPU that a tensor is on; 0 on a CPU."""
    return torch.cuda.get_device_properties(tensor.device).multi_processor_count if tensor.is_cuda else 0


def aligned(width: int) -> int:
    """Columns of the workspace, so that its rows are read in vectors; width: most blocks of a request."""
    return 16 * cdiv(width, 16)


def work_dtype(dtype: torch.dtype) -> torch.dtype:
    """In which log-sum-exps are kept; dtype: of the model."""
    return torch.float16 if dtype.itemsize == 2 else torch.float32


def pairs_at_once(num_layers: int, reqs: int, heads: int, width: int, dtype: torch.dtype) -> int:
    """(layer, request) pairs that the workspace holds; dtype: of the model."""
    each = heads * aligned(width) * work_dtype(dtype).itemsize
    return max(1, min(num_layers * reqs, WORKSPACE // each, MOST_PROGRAMS))


def workspace_bytes(mask: MaskShape, num_layers: int, reqs: int, heads: int, width: int, dtype: torch.dtype) -> int:
    """Memory of a `Scorer`; width: most blocks of a request; dtype: of the model."""
    each = heads * aligned(width) * work_dtype(dtype).itemsize
    each += 4 * (aligned(width) + Reading.of(mask).most + 4 * PARTS * heads)
    return pairs_at_once(num_layers, reqs, heads, width, dtype) * each


class Scorer:
    """Scores blocks for `verify`.

    means: `KeySummaries.means`; queries: `QueryWindow.kept`; scales: [layers] softmax scales; width: most blocks of a
    request.
    """

    def __init__(self, mask: MaskShape, means: Tensor, queries: Tensor, scales: Tensor, width: int):
        self.mask, self.means, self.queries, self.scales = mask, means, queries, scales
        layers, reqs, self.window, self.heads, _ = queries.shape
        kv_heads, self.width, self.reading = means.shape[2], aligned(width), Reading.of(mask)
        self.pairs = pairs_at_once(layers, reqs, self.heads, width, means.dtype)
        new: dict[str, Any] = {"device": means.device, "dtype": torch.float32}
        shape = (self.pairs, kv_heads, self.width, self.heads // kv_heads)
        self.work = torch.empty(shape, device=means.device, dtype=work_dtype(means.dtype))
        self.mass = torch.empty(self.pairs, self.width, **new)
        self.tops, self.totals = torch.empty(2, self.pairs, 2 * PARTS, self.heads, **new)
        self.chosen = torch.empty(self.pairs, self.reading.most, device=means.device, dtype=torch.int32)

    def run(self, cache: KeyCache, batch: BatchBuffers, num_rows: int, ranking: Ranking) -> None:
        """Score the first `num_rows` rows of a batch, where `batch.scored_lens` is not 0; `ranking` keeps the best."""
        if not by_kernel(self.means):
            return native.score(self, cache, batch, num_rows, ranking)
        total = len(self.means) * num_rows
        for first in range(0, total, self.pairs):
            pairs = min(self.pairs, total - first)
            self._look(cache, batch, num_rows, first, pairs)
            self._shares(cache, batch, num_rows, first, pairs, whole=False)
            pick(self.mass, self.chosen, self.reading, self.mask, batch.scored_lens, num_rows, first, pairs)
            self._read(cache, batch, num_rows, first, pairs)
            self._shares(cache, batch, num_rows, first, pairs, whole=True)
            ranking.remember(self.mass, batch, num_rows, first, pairs)

    def _sizes(self, cache: KeyCache) -> dict:
        group = self.heads // cache.kv_heads
        # Triton's interpreter cannot multiply 16-bit matrices, nor would it be faster.
        dot = tl.float32 if interpreted(self.means) else TRITON_DTYPES[self.queries.dtype]
        return {
            "WINDOW": self.window, "HEADS": self.heads, "GROUP": group, "DOT": dot, "PARTS": PARTS,
            "PADDED_GROUP": max(16, triton.next_power_of_2(group)), **self.reading.constants,
        }  # fmt: skip

    def _splits(self, programs: int) -> int:
        """Programs that share the work of one, where there are so many: enough to keep a GPU busy, one on a CPU."""
        return max(1, min(PARTS, cdiv(8 * processors(self.means), programs)))

    def _common(self, batch: BatchBuffers, num_rows: int) -> tuple:
        last, table = batch.last_query, batch.block_table
        return last, self.queries, self.scales, table, table.stride(0), num_rows, self.queries.shape[1], self.width

    # num_stages of what follows: so many that keys of later tiles are on their way while one is multiplied. The heads
    # of a block come first in the grid: their keys lie side by side, and are read at the same time.

    def _look(self, cache: KeyCache, batch: BatchBuffers, num_rows: int, first: int, pairs: int) -> None:
        granule = self.mask.block_size // self.means.shape[3]
        constants = {name: cache.constants[name] for name in ("KV_HEADS", "BLOCK_SIZE", "SIZE", "PADDED")}
        # More would not fit the shared memory of many GPUs, 99 KiB, where a key takes more than 256 bytes.
        stages = 5 if constants["PADDED"] * self.means.itemsize <= 256 else 2
        _look[cache.kv_heads, self._splits(pairs * cache.kv_heads), pairs](
            self.work, self.tops, self.totals, self.means, self.means.stride(0), first, batch.scored_lens,
            *self._common(batch, num_rows), GRANULE=granule, LOG_GRANULE=math.log(granule),
            TILE=1024 if interpreted(self.means) else 64, **constants, **self._sizes(cache), num_stages=stages,
        )  # fmt: skip

    def _read(self, cache: KeyCache, batch: BatchBuffers, num_rows: int, first: int, pairs: int) -> None:
        padded = triton.next_power_of_2(self.mask.block_size)
        tile = max(1, (4096 if interpreted(self.means) else 64) // padded)
        _read[cache.kv_heads, self._splits(pairs * cache.kv_heads), pairs](
            *cache.arguments, self.work, self.tops, self.totals, self.chosen, first, batch.scored_lens,
            *self._common(batch, num_rows), TILE=tile, PADDED_BLOCK=padded, **cache.constants, **self._sizes(cache),
            num_stages=4,
        )  # fmt: skip

    def _shares(self, cache: KeyCache, batch: BatchBuffers, num_rows: int, first: int, pairs: int, whole: bool) -> None:
        _shares[self._splits(pairs), pairs](
            self.mass, self.tops, self.totals, self.work, first, batch.scored_lens, num_rows, self.width,
            self._splits(pairs * cache.kv_heads), WHOLE=whole, PARTS=PARTS, HEADS=self.heads,
            GROUP=self.heads // cache.kv_heads, PADDED_HEADS=triton.next_power_of_2(self.heads),
            BLOCK_SIZE=self.mask.block_size, TILE=1024 if interpreted(self.means) else 64, **self.reading.constants,
        )  # fmt: skip
