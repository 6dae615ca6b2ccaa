"""Selection on a CPU: the loops of `loops` over numpy views of what the kernels of a GPU are given.

Arguments and results are those of the methods that call these functions, as in `definition`, whose torch runs instead
where `keys.ON_CPU` is "torch".
"""

from functools import cache
from threading import Thread

import numba
import torch
from torch import Tensor

from vllm_std.mask import cdiv
from vllm_std.selection import definition, keys, loops
from vllm_std.selection.batch import BatchBuffers
from vllm_std.selection.keys import KeyCache

TILE = 16  # tokens of a tile of keys as the CPU's AMX kernels have them


@cache
def _start_threads() -> None:
    """Have numba start its threads from a thread that ends at once.

    numba then sets what OpenMP does in the thread that it is called from: all cores, and parallel regions within
    parallel regions, which make torch's attention up to four times as slow for as long as that thread lives.
    """
    starting = Thread(target=numba.get_num_threads)
    starting.start()
    starting.join()


def _in_torch() -> bool:
    """Whether `definition` runs instead of loops, which are given as many threads as torch has."""
    _start_threads()
    numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
    return keys.ON_CPU == "torch"


def _raw(tensor: Tensor) -> tuple:
    """A tensor as numpy takes it, and float32 [numbers] of what whole numbers in it stand for.

    bfloat16 comes as int16, of which loops make values without such a table.
    """
    if tensor.dtype in (torch.float32, torch.bfloat16):
        raw = tensor if tensor.dtype == torch.float32 else tensor.view(torch.int16)
        return raw.numpy(), torch.zeros(1).numpy()
    whole = torch.uint8 if tensor.dtype.itemsize == 1 else torch.uint16
    every = torch.arange(1 << 8 * tensor.dtype.itemsize, dtype=torch.int32).to(whole)
    return tensor.view(whole).numpy(), every.view(tensor.dtype).float().numpy()


def key_layout(cache: KeyCache) -> tuple:
    """How the keys of a cache lie: the first arguments of all loops that read keys, found once.

    addresses: [layers] uint64; like: an empty array of the type that keys are read as; strides: of a block, of a KV
    head, and what a head's keys take up; key_table: as `_raw` has it; key_scales: [layers]; lanes: tokens that lie side
    by side, 0 where they do not; order: as `KeyCache` has it.
    """
    if cache.layout is None:
        like, key_table = _raw(cache.caches[0].as_strided((1,), (1,)))
        like, lanes = like[:0], 0
        strides = torch.tensor([*cache.strides[:2], int(cache.order.max()) + 1])
        if _in_pairs(cache):
            like, strides = like.view("int16").view("uint32"), strides // 2
        else:
            lanes = _lanes(cache.order)
        scales, order = cache.key_scales.numpy(), cache.order.numpy()
        cache.layout = cache.addresses.numpy(), like, strides.numpy(), key_table, scales, lanes, order
    return cache.layout


def _in_pairs(cache: KeyCache) -> bool:
    """Whether keys lie as [16 tokens][pair of channels][token][2], as the CPU's AMX kernels have them."""
    tokens, channels = cache.order.shape
    if cache.dtype != torch.bfloat16 or tokens % TILE or channels % 8:
        return False
    token, channel = torch.arange(tokens)[:, None], torch.arange(channels)
    pairs = token // TILE * TILE * channels + channel // 2 * 2 * TILE + token % TILE * 2 + channel % 2
    return torch.equal(cache.order.long(), pairs)


def _lanes(order: Tensor) -> int:
    """Tokens whose values of a channel lie side by side, as the CPU's vector kernels have them; 0 for another order."""
    tokens, channels = order.shape
    token, channel = torch.arange(tokens)[:, None], torch.arange(channels)
    for lanes in (32, 16):
        side_by_side = token // lanes * lanes * channels + channel * lanes + token % lanes
        if tokens % lanes == 0 and torch.equal(order.long(), side_by_side):
            return lanes
    return 0


def capture_queries(kept: Tensor, query: Tensor, query_start_loc: Tensor) -> None:
    """`QueryWindow.capture` of a layer. kept: [reqs, window, query heads, head size]."""
    if _in_torch():
        return definition.capture_queries(kept, query, query_start_loc)
    query = query.to(kept.dtype)  # a backend may quantise queries
    loops.capture_queries(_raw(kept)[0], _raw(query)[0], query_start_loc.numpy())


def summarise_blocks(
    means: Tensor, cache: KeyCache, context_lens: Tensor, table: Tensor, rows: Tensor, backs: Tensor
) -> None:
    """`KeySummaries.update`; rows, backs: [n] as `definition.completed_blocks` takes them."""
    if _in_torch():
        return definition.summarise_blocks(means, cache, context_lens, table, rows, backs)
    blocks = definition.completed_blocks(cache.block_size, context_lens, table, rows, backs)
    found = torch.empty(len(means), len(blocks), *means.shape[2:])
    loops.mean_keys(*key_layout(cache), blocks.numpy(), found.numpy())
    means[:, blocks] = found.to(means.dtype)


def score(scorer, cache: KeyCache, batch: BatchBuffers, num_rows: int, ranking) -> None:
    """`Scorer.run`."""
    if _in_torch():
        return definition.score(scorer, cache, batch, num_rows, ranking)
    mask, scored_lens, rows = scorer.mask, batch.scored_lens[:num_rows], torch.arange(num_rows)
    queries = scorer.queries[:, rows, batch.last_query[:num_rows].long()].float()
    queries = queries * scorer.scales[:, None, None, None]
    loops.score(
        *key_layout(cache),
        *_raw(scorer.means),
        queries.numpy(),
        scored_lens.numpy(),
        scorer.reads.blocks(cdiv(scored_lens, mask.block_size)).numpy(),
        batch.slots.numpy(),
        batch.block_table.numpy(),
        mask.block_size,
        mask.sink,
        mask.recent,
        ranking.blocks.numpy(),
        ranking.scores.numpy(),
        ranking.scored_until.numpy(),
    )


def fill_tables(ranking, tables: Tensor, seq_lens: Tensor, batch: BatchBuffers, num_rows: int) -> None:
    """`Ranking.fill_tables`."""
    if _in_torch():
        return definition.fill_tables(ranking, tables, seq_lens, batch, num_rows)
    loops.fill_tables(
        tables.numpy(),
        seq_lens.numpy(),
        batch.context_lens[:num_rows].numpy(),
        batch.slots.numpy(),
        batch.block_table.numpy(),
        ranking.blocks.numpy(),
        ranking.scores.numpy(),
        ranking.scored_until.numpy(),
        ranking.budget.numpy(),
        ranking.mask.sink,
        ranking.mask.recent,
        ranking.mask.block_size,
    )
