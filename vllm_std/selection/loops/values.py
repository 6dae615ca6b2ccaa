"""Values in memory, for compiled loops: where they are, what they stand for, and when they are fetched."""

from collections.abc import Callable
from functools import partial

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

FAST = {"reassoc", "contract", "nsz", "arcp"}  # sums in any order, so that they vectorise


def compiled(function: Callable | None = None, **options) -> Callable:
    """numba's `njit`, whose results are kept on disk where any folder for that can be written."""
    if function is None:
        return partial(compiled, **options)
    try:
        return njit(function, cache=True, error_model="numpy", **options)
    except RuntimeError:
        return njit(function, error_model="numpy", **options)


@intrinsic
def pointer(typing, address, like):
    """An address as a pointer to values of the type that an array holds."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(like.dtype)(types.uint64, like), generate


def value(raw, table):
    """float32 of a value as it is read; table: by whole number, for those that need one."""
    raise NotImplementedError


@overload(value, inline="always")
def _value_of(raw, table):
    if raw == types.int16:
        return lambda raw, table: np.int32(np.int32(raw) << np.int32(16)).view(np.float32)
    if raw == types.float32:
        return lambda raw, table: raw
    return lambda raw, table: table[raw]


@intrinsic
def prefetch(typing, keys, begin, count):
    """Have a stretch of an array in the second cache soon: a block's keys lie far from the last one's."""

    def generate(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, value=arguments[0]).data
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer(), *[ir.IntType(32)] * 3])
        fetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        each = 64 // (signature.args[0].dtype.bitwidth // 8)
        begin, end = arguments[1], builder.add(arguments[1], arguments[2])
        with cgutils.for_range_slice(builder, begin, end, begin.type(each)) as (at, _):
            line = builder.bitcast(builder.gep(data, [at]), ir.IntType(8).as_pointer())
            builder.call(fetch, [line, *(ir.IntType(32)(option) for option in (0, 2, 1))])
        return context.get_dummy_value()

    return types.none(keys, types.intp, types.intp), generate


@njit(inline="always")
def exp(x):
    """Of x <= 0, in arithmetic that vectorises: powers of two, and Taylor's polynomial between them."""
    x = max(x, np.float32(-87.0)) * np.float32(1.44269504)
    whole = np.floor(x + np.float32(0.5))
    r = (x - whole) * np.float32(0.69314718)
    p = np.float32(1 / 720)
    p = p * r + np.float32(1 / 120)
    p = p * r + np.float32(1 / 24)
    p = p * r + np.float32(1 / 6)
    p = p * r + np.float32(0.5)
    p = p * r + np.float32(1)
    return (p * r + np.float32(1)) * np.int32((np.int32(whole) + 127) << 23).view(np.float32)
