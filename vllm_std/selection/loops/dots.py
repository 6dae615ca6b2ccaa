"""Queries times keys, and times mean keys, whatever the order in which keys lie in a block."""

from itertools import product

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from vllm_std.selection.loops.values import FAST, prefetch, value

MEANS_AHEAD = 4  # blocks ahead of the current one whose mean keys are prefetched


@intrinsic
def _tile_of_pairs(typing, words, pairs, qa, qb, a, b):
    """a, b: [16] logits of two query heads; words: [pairs of channels][16 tokens] of two bfloat16, unpacked once.

    In vectors of 16, because LLVM makes less of the loops that say the same.
    """
    floats, integers = ir.VectorType(ir.FloatType(), 16), ir.VectorType(ir.IntType(32), 16)

    def generate(context, builder, signature, arguments):
        def data(place):
            return context.make_array(signature.args[place])(context, builder, value=arguments[place]).data

        def spread(pointer, index):
            value = builder.load(builder.gep(pointer, [index]))
            one = builder.insert_element(ir.Constant(floats, ir.Undefined), value, ir.IntType(32)(0))
            return builder.shuffle_vector(one, one, ir.Constant(integers, [0] * 16))

        word, queries, out = data(0), (data(2), data(3)), (data(4), data(5))
        sums = [cgutils.alloca_once_value(builder, ir.Constant(floats, [0.0] * 16)) for _ in range(4)]
        for sum_ in sums:
            builder.store(ir.Constant(floats, [0.0] * 16), sum_)
        with cgutils.for_range(builder, arguments[1]) as loop:
            at = builder.gep(word, [builder.mul(loop.index, loop.index.type(16))])
            both = builder.load(builder.bitcast(at, integers.as_pointer()), align=4)
            low = builder.bitcast(builder.shl(both, ir.Constant(integers, [16] * 16)), floats)
            high = builder.bitcast(builder.and_(both, ir.Constant(integers, [0xFFFF0000] * 16)), floats)
            channel = builder.mul(loop.index, loop.index.type(2))
            places = channel, builder.add(channel, channel.type(1))
            for sum_, (query, (place, keys)) in zip(sums, product(queries, zip(places, (low, high)))):
                term = builder.fmul(keys, spread(query, place), flags=("contract",))
                builder.store(builder.fadd(term, builder.load(sum_), flags=("contract",)), sum_)
        for to, of in zip(out, (sums[:2], sums[2:])):
            total = builder.fadd(*map(builder.load, of))
            builder.store(total, builder.bitcast(to, floats.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.none(words, pairs, qa, qb, a, b), generate


@njit(error_model="numpy")
def _dots_of_pairs(words, q, first, last, out, at):
    """Of keys that lie as [16 tokens][pair of channels][token] words of two bfloat16: those of the CPU's AMX kernels.

    out[first:last, at:]: logits of some query heads and all tokens of a block.
    """
    pairs = q.shape[1] // 2
    span = pairs * 16
    for tile in range(len(words) // span):
        some, begin = words[tile * span : (tile + 1) * span], at + tile * 16
        for head in range(first, last, 2):
            other = min(head + 1, last - 1)
            a, b = out[head, begin : begin + 16], out[other, begin : begin + 16]
            _tile_of_pairs(some, pairs, q[head], q[other], a, b)


@njit(fastmath=FAST, error_model="numpy")
def _dots_of_lanes(keys, table, lanes, q, first, last, out, at):
    """The same of keys that lie as [`lanes` tokens][channel][token]: those of the CPU's vector kernels."""
    size = q.shape[1]
    for tile in range(len(keys) // (size * lanes)):
        for head in range(first, last):
            sums = out[head, at + tile * lanes : at + (tile + 1) * lanes]
            sums[:] = 0
            for channel in range(size):
                begin, query = (tile * size + channel) * lanes, q[head, channel]
                for t in range(lanes):
                    sums[t] += value(keys[begin + t], table) * query


@njit(fastmath=FAST, error_model="numpy")
def _dots_in_order(keys, table, order, q, first, last, out, at):
    """The same of keys that lie anyhow; order: [tokens, channels] where."""
    for token in range(len(order)):
        for head in range(first, last):
            total = np.float32(0)
            for channel in range(q.shape[1]):
                total += value(keys[order[token, channel]], table) * q[head, channel]
            out[head, at + token] = total


def dots(keys, table, lanes, order, q, first, last, out, at):
    """Logits of the keys of a block, by the loop for the order in which they lie."""
    raise NotImplementedError


@overload(dots)
def _dots_of(keys, table, lanes, order, q, first, last, out, at):
    if keys.dtype == types.uint32:
        return lambda keys, table, lanes, order, q, first, last, out, at: _dots_of_pairs(keys, q, first, last, out, at)

    def dots(keys, table, lanes, order, q, first, last, out, at):
        if lanes:
            _dots_of_lanes(keys, table, lanes, q, first, last, out, at)
        else:
            _dots_in_order(keys, table, order, q, first, last, out, at)

    return dots


@njit(fastmath=FAST, error_model="numpy")
def dots_of_means(means, values, q, table, logits):
    """logits [heads, granules of the blocks in `table`]: queries times mean keys."""
    _, kv_heads, granules, size = means.shape
    group, mean, each = len(q) // kv_heads, np.empty(size, np.float32), kv_heads * granules * size
    flat = means.reshape(-1)
    for block in range(len(table)):
        if block + MEANS_AHEAD < len(table):
            prefetch(flat, np.int64(table[block + MEANS_AHEAD]) * each, each)
        for kv in range(kv_heads):
            for granule in range(granules):
                line = means[table[block], kv, granule]
                for channel in range(size):
                    mean[channel] = value(line[channel], values)
                for head in range(kv * group, (kv + 1) * group):
                    total, query = np.float32(0), q[head]
                    for channel in range(size):
                        total += mean[channel] * query[channel]
                    logits[head, block * granules + granule] = total
