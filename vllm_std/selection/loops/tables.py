"""Masked block tables, mean keys of blocks, and the queries that are kept."""

import numpy as np
from numba import carray, prange, types
from numba.extending import overload

from vllm_std.selection.loops.best import best_places
from vllm_std.selection.loops.values import FAST, compiled, pointer, value


@compiled
def fill_tables(
    tables, seq_lens, context_lens, slots, block_table, blocks, scores, scored_until, budgets, sink, recent, size
):
    """`Ranking.fill_tables`, for the first rows of a batch; size: tokens of a block."""
    top, width, columns = blocks.shape[2], tables.shape[2], block_table.shape[1]
    chosen = np.empty(top, np.int64)
    for row in range(len(context_lens)):
        length, slot = context_lens[row], slots[row]
        if length <= 0:
            seq_lens[row] = min(seq_lens[row], 1)
            continue
        first_recent = max(length - recent, 0) // size
        begin, budget = min(first_recent, sink), budgets[length]
        newer = min(max(first_recent - max(scored_until[slot], sink), 0), budget)
        known = min(max(scored_until[slot] - sink, 0), top)
        best = min(budget - newer, known)
        for layer in range(len(tables)):
            to = tables[layer, row]
            to[:begin] = block_table[row, :begin]
            best_places(scores[layer, slot], 0, known, best, chosen)
            for i in range(best):
                to[begin + i] = block_table[row, blocks[layer, slot, chosen[i]]]
            for i in range(begin + best, width):
                to[i] = block_table[row, min(first_recent - newer + i - begin - best, columns - 1)]
        seq_lens[row] = length + 1 - (first_recent - begin - best - newer) * size


def _sums(keys, table, lanes, order, out):
    raise NotImplementedError


@overload(_sums)
def _sums_of(keys, table, lanes, order, out):
    """out[granule, channel]: sum of the keys of a block."""
    if keys.dtype == types.uint32:

        def sums(keys, table, lanes, order, out):
            pairs, tiles, high = out.shape[1] // 2, len(order) // 16, np.uint32(0xFFFF0000)
            for tile in range(tiles):
                to = out[tile * len(out) // tiles]
                for pair in range(pairs):
                    low_sum = high_sum = np.float32(0)
                    words = keys[(tile * pairs + pair) * 16 : (tile * pairs + pair + 1) * 16]
                    for t in range(16):
                        low_sum += np.uint32(words[t] << 16).view(np.float32)
                        high_sum += np.uint32(words[t] & high).view(np.float32)
                    to[2 * pair] += low_sum
                    to[2 * pair + 1] += high_sum

        return sums

    def sums(keys, table, lanes, order, out):
        each = len(order) // len(out)
        for token in range(len(order)):
            for channel in range(out.shape[1]):
                out[token // each, channel] += value(keys[order[token, channel]], table)

    return sums


@compiled(parallel=True, fastmath=FAST)
def mean_keys(addresses, like, strides, key_table, key_scales, lanes, order, blocks, means):
    """means [layers, blocks, KV heads, granules, head size]: mean keys of some physical blocks, float32."""
    layers, many, kv_heads, granules, _ = means.shape
    for pair in prange(layers * many):
        layer, place = pair // many, pair % many
        begin = np.int64(blocks[place]) * strides[0]
        keys = carray(pointer(addresses[layer], like), (begin + strides[0],))
        for kv in range(kv_heads):
            some = keys[begin + kv * strides[1] : begin + kv * strides[1] + strides[2]]
            to = means[layer, place, kv]
            to[:] = 0
            _sums(some, key_table, lanes, order, to)
            to *= key_scales[layer] * np.float32(granules) / np.float32(len(order))


@compiled
def capture_queries(kept, query, starts):
    """`QueryWindow.capture` of a layer, of 16-bit or 32-bit values as they are."""
    window = kept.shape[1]
    for row in range(min(len(starts) - 1, len(kept))):
        first = max(starts[row + 1] - window, starts[row])
        for place in range(min(window, starts[row + 1] - first)):
            kept[row, place] = query[first + place]
