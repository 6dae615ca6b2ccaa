"""The scores of `verify`, and the best of them: `definition.score` in one pass over each (layer, request) pair."""

import math

import numpy as np
from numba import carray, njit, prange

from vllm_std.selection.loops.best import best_places
from vllm_std.selection.loops.dots import dots, dots_of_means
from vllm_std.selection.loops.values import FAST, compiled, exp, pointer, prefetch

LOWEST = np.float32(-1e30)  # logit of a token that is not written
KEYS_AHEAD = 2  # blocks ahead of the current one whose keys are prefetched


@njit(error_model="numpy")
def highest(values):
    """The maximum, of whole numbers in the same order, because their comparison vectorises."""
    bits, top = values.view(np.int32), np.int32(-(2**31))
    for i in range(len(bits)):
        ordered = bits[i] ^ ((bits[i] >> 31) & 0x7FFFFFFF)
        top = max(top, np.int32(ordered))
    return np.int32(top ^ ((top >> 31) & 0x7FFFFFFF)).view(np.float32)


@njit(fastmath=FAST, error_model="numpy")
def _exponentials(logits, top, each, weight, out):
    """out[i]: `weight` times the sum of exp(logits - top) over the i-th `each` of them. Returns the sum of out."""
    total = np.float32(0)
    for i in range(len(out) * each):
        logits[i] = exp(logits[i] - top)
    for i in range(len(out)):
        part = np.float32(0)
        for k in range(i * each, (i + 1) * each):
            part += logits[k]
        out[i] = part * weight
        total += out[i]
    return total


@njit(error_model="numpy")
def _read_blocks(estimates, sink, first_recent, written, read):
    """Sink, recent window and the best others by their means: `read` blocks at most, in increasing order."""
    chosen = np.empty(min(written, read), np.int64)
    begin = min(sink, first_recent)
    for block in range(begin):
        chosen[block] = block
    candidates = len(chosen) - begin - (written - first_recent)
    count = begin + best_places(estimates, begin, first_recent, candidates, chosen[begin:])
    for block in range(first_recent, written):
        chosen[count] = block
        count += 1
    return chosen[:count]


@njit(error_model="numpy")
def _exact_logits(keys, strides, key_table, key_scale, lanes, order, q, kv_heads, table, chosen, length, size):
    """[heads, tokens of the chosen blocks] queries times keys; LOWEST for tokens that are not written."""
    group, logits = len(q) // kv_heads, np.empty((len(q), len(chosen) * size), np.float32)
    for i in range(len(chosen)):
        for kv in range(kv_heads):
            begin = table[chosen[i]] * strides[0] + kv * strides[1]
            if i + KEYS_AHEAD < len(chosen):
                prefetch(keys, table[chosen[i + KEYS_AHEAD]] * strides[0] + kv * strides[1], strides[2])
            some = keys[begin : begin + strides[2]]
            dots(some, key_table, lanes, order, q, kv * group, (kv + 1) * group, logits, i * size)
    logits *= key_scale
    for i in range(len(chosen)):
        for token in range(max(0, length - chosen[i] * size), size):
            logits[:, i * size + token] = LOWEST
    return logits


@njit(error_model="numpy")
def _scores(
    keys, strides, key_table, key_scale, lanes, order, means, mean_table, q, table, length, size, sink, first_recent,
    read,
):  # fmt: skip
    """[written blocks] attention of one query to each block of one layer, as `definition.verify_scores`."""
    heads, kv_heads, granules = len(q), means.shape[1], means.shape[2]
    complete, written = length // size, (length + size - 1) // size
    logits, sums = np.empty((heads, complete * granules), np.float32), np.zeros((heads, written), np.float32)
    estimates, tops = np.zeros(written, np.float32), np.empty(heads, np.float32)
    dots_of_means(means, mean_table, q, table[:complete], logits)
    for head in range(heads):
        tops[head] = highest(logits[head])
        weight = np.float32(size // granules)
        total = _exponentials(logits[head], tops[head], granules, weight, sums[head, :complete])
        for block in range(complete):
            estimates[block] += sums[head, block] / total
    chosen = _read_blocks(estimates, sink, first_recent, written, read)
    exact = _exact_logits(keys, strides, key_table, key_scale, lanes, order, q, kv_heads, table, chosen, length, size)
    scores, read_sums = np.zeros(written, np.float32), np.empty(len(chosen), np.float32)
    for head in range(heads):
        top = max(tops[head], highest(exact[head]))
        _exponentials(exact[head], top, size, np.float32(1), read_sums)
        sums[head] *= np.float32(math.exp(tops[head] - top))
        for i in range(len(chosen)):
            sums[head, chosen[i]] = read_sums[i]
        scores += sums[head] / sums[head].sum()
    return scores


@compiled(parallel=True)
def score(
    addresses, like, strides, key_table, key_scales, lanes, order, means, mean_table, queries, scored_lens, read,
    slots, block_table, size, sink, recent, blocks, scores, scored_until,
):  # fmt: skip
    """`Scorer.run`.

    queries: [layers, rows, heads, head size] float32, scaled; read: [rows] blocks whose keys are read; size: tokens of
    a block; the rest as `native.score` has it.
    """
    layers, rows, top = len(means), len(scored_lens), blocks.shape[2]
    for pair in prange(layers * rows):
        layer, row = pair // rows, pair % rows
        length, slot = scored_lens[row], slots[row]
        if length <= 0:
            continue
        keys = carray(pointer(addresses[layer], like), (means.shape[1] * strides[0],))
        first_recent = max(length - recent, 0) // size
        found = _scores(
            keys, strides, key_table, key_scales[layer], lanes, order, means[layer], mean_table, queries[layer, row],
            block_table[row], length, size, sink, first_recent, read[row],
        )  # fmt: skip
        kept = np.empty(top, np.int64)
        for i in range(best_places(found, sink, first_recent, top, kept)):
            blocks[layer, slot, i], scores[layer, slot, i] = kept[i], found[kept[i]]
        if layer == 0:
            scored_until[slot] = first_recent
