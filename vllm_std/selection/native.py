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
from vllm_std.selection.key_layout import key_layout, raw
from vllm_std.selection.keys import KeyCache


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


def capture_queries(kept: Tensor, query: Tensor, query_start_loc: Tensor) -> None:
    """`QueryWindow.capture` of a layer. kept: [reqs, window, query heads, head size]."""
    if _in_torch():
        return definition.capture_queries(kept, query, query_start_loc)
    query = query.to(kept.dtype)  # a backend may quantise queries
    loops.capture_queries(raw(kept)[0], raw(query)[0], query_start_loc.numpy())


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
        *raw(scorer.means),
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
