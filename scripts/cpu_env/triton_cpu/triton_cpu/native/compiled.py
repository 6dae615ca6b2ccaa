"""What the replacements share: how they are compiled, and memory at an address."""

from collections.abc import Callable

import numba
import numpy as np
import torch
from numba import types
from numba.extending import intrinsic, overload


def compiled(*signatures: str) -> Callable:
    """numba's `njit` for given types: compiled when a module is imported, and kept on disk, so no request waits."""
    return numba.njit(list(signatures), cache=True, nogil=True, error_model="numpy")


@intrinsic
def _pointer(typing, address):
    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.int32)(types.uint64), generate


@numba.njit
def words(address, count):
    """[count] int32 at an address that a tensor holds."""
    return numba.carray(_pointer(np.uint64(address)), (count,))


def raw(tensor: torch.Tensor) -> np.ndarray:
    """A tensor as numpy: bfloat16, which numpy has not, as int16."""
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def as_float(value):
    """float32 of what `raw` gives."""
    raise NotImplementedError


@overload(as_float, inline="always")
def _as_float(value):
    if value == types.int16:
        return lambda value: np.int32(np.int32(value) << np.int32(16)).view(np.float32)
    return lambda value: value
