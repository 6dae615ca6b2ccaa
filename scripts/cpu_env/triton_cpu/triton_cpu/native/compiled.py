"""What the replacements share: how they are compiled, and memory at an address."""

from collections.abc import Callable

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic


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
