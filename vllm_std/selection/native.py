"""Selection on a CPU: the loops of `loops` over numpy views of what the kernels of a GPU are given.

Arguments and results are those of the methods that call these functions, as in `plain`, whose torch runs instead where
`ON_CPU` is "torch".
"""

import numba
import torch
from torch import Tensor

from vllm_std.selection import keys, loops, plain
from vllm_std.selection.batch import BatchBuffers
from vllm_std.selection.keys import KeyCache

NO_ORDER = torch.zeros(0, 0, dtype=torch.int32).numpy()
TILE = 16  # tokens of a tile of AMX keys


def _plainly() -> bool:
    threads = torch.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    if torch.get_num_threads() != threads:  # numba's own start gives OpenMP all cores, and vLLM has planned for fewer
        torch._C.set_num_threads(threads)  # of torch.set_num_threads vLLM's CPU worker makes a warning
    return keys.ON_CPU == "torch"


def _raw(tensor: Tensor) -> tuple:
    """(values, table): values as numpy takes them, and what whole numbers stand for; bfloat16 as int16, without."""
    if tensor.dtype in (torch.float32, torch.bfloat16):
        raw = tensor if tensor.dtype == torch.float32 else tensor.view(torch.int16)
        return raw.numpy(), torch.zeros(1).numpy()
    whole = torch.uint8 if tensor.dtype.itemsize == 1 else torch.uint16
    every = torch.arange(1 << 8 * tensor.dtype.itemsize, dtype=torch.int32).to(whole)
    return tensor.view(whole).numpy(), every.view(tensor.dtype).float().numpy()


class Layout:
    """How the keys of a cache lie, for the loops: the first arguments of those that read keys.

    `like`: an empty array of the type that keys are read as; `strides`: of a block, of a KV head, and what a head's
    keys take up; `lanes`: tokens that lie side by side, 0 where they do not.
    """

    def __init__(self, cache: KeyCache):
        order = cache.order.long().cpu()
        tokens, channels = order.shape
        token, channel = torch.arange(tokens)[:, None], torch.arange(channels)
        raw, table = _raw(cache.caches[0].as_strided((1,), (1,)))
        words, lanes = False, 0
        if cache.dtype == torch.bfloat16 and tokens % TILE == 0 and channels % 8 == 0:
            pairs = token // TILE * TILE * channels + channel // 2 * 2 * TILE + token % TILE * 2 + channel % 2
            words = torch.equal(order, pairs)
        for some in (32, 16):
            if not words and not lanes and tokens % some == 0:
                side_by_side = token // some * some * channels + channel * some + token % some
                lanes = some if torch.equal(order, side_by_side) else 0
        span = (*cache.strides[:2], int(order.max()) + 1)
        if words:
            raw, span = raw[:0].view("int16").view("uint32"), tuple(stride // 2 for stride in span)
        strides = torch.tensor(span).numpy()
        self.lanes, self.order = lanes, cache.order.numpy()
        self.arguments = cache.addresses.numpy(), raw[:0], strides, table, cache.key_scales.numpy(), lanes, self.order


def layout(cache: KeyCache) -> Layout:
    if cache.layout is None:
        cache.layout = Layout(cache)
    return cache.layout


def keep_queries(kept: Tensor, query: Tensor, query_start_loc: Tensor) -> None:
    """`QueryWindow.capture` of a layer. kept: [reqs, window, query heads, head size]."""
    if _plainly():
        return plain.keep_queries(kept, query, query_start_loc)
    loops.keep(_raw(kept)[0], _raw(query.to(kept.dtype))[0], query_start_loc.numpy())  # a backend may quantise queries


def summarise(means: Tensor, cache: KeyCache, length: Tensor, table: Tensor, rows: Tensor, backs: Tensor) -> None:
    """`KeySummaries.update`; rows, backs: [n] as `plain.completed` takes them."""
    if _plainly():
        return plain.summarise(means, cache, length, table, rows, backs)
    blocks = plain.completed(cache.block_size, length, table, rows, backs)
    made = torch.empty(len(means), len(blocks), *means.shape[2:])
    loops.average(*layout(cache).arguments, blocks.numpy(), made.numpy())
    means[:, blocks] = made.to(means.dtype)


def score(scorer, cache: KeyCache, batch: BatchBuffers, num_rows: int, ranking) -> None:
    """`Scorer.run`."""
    if _plainly():
        return plain.score(scorer, cache, batch, num_rows, ranking)
    rows = torch.arange(num_rows)
    queries = scorer.queries[:, rows, batch.last_query[:num_rows].long()].float() * scorer.scales[:, None, None, None]
    means, mean_table = _raw(scorer.means)
    mask, scored = scorer.mask, batch.scored_lens[:num_rows]
    read = scorer.reading.blocks(-(-scored // mask.block_size))
    loops.score(
        *layout(cache).arguments, means, mean_table, queries.numpy(), scored.numpy(), read.numpy(),
        batch.slots.numpy(), batch.block_table.numpy(), mask.block_size, mask.sink, mask.recent,
        ranking.blocks.numpy(), ranking.scores.numpy(), ranking.frontier.numpy(),
    )  # fmt: skip


def fill(ranking, tables: Tensor, seq_lens: Tensor, batch: BatchBuffers, num_rows: int) -> None:
    """`Ranking.fill`."""
    if _plainly():
        return plain.fill(ranking, tables, seq_lens, batch, num_rows)
    mask = ranking.mask
    loops.fill(
        tables.numpy(), seq_lens.numpy(), batch.context_lens[:num_rows].numpy(), batch.slots.numpy(),
        batch.block_table.numpy(), ranking.blocks.numpy(), ranking.scores.numpy(), ranking.frontier.numpy(),
        ranking.budget.numpy(), mask.sink, mask.recent, mask.block_size,
    )  # fmt: skip
