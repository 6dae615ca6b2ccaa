"""Mends Triton's interpreter where vLLM's own kernels meet its edges."""

import numpy as np
import triton


def register() -> None:
    """Loaded by vLLM in every process; a second call changes nothing."""
    if not triton.knobs.runtime.interpret:
        return
    from triton.runtime.interpreter import InterpreterBuilder

    if hasattr(InterpreterBuilder, "plain_masked_store"):
        return
    # `block < size & flag` may come out as an integer array, which the interpreter's C code refuses as a mask.
    plain_store = InterpreterBuilder.plain_masked_store = InterpreterBuilder.create_masked_store
    plain_load = InterpreterBuilder.plain_masked_load = InterpreterBuilder.create_masked_load

    def as_bool(mask):
        mask.data = np.asarray(mask.data, dtype=bool)
        return mask

    InterpreterBuilder.create_masked_store = lambda self, ptrs, value, mask, *args: plain_store(
        self, ptrs, value, as_bool(mask), *args
    )
    InterpreterBuilder.create_masked_load = lambda self, ptrs, mask, *args: plain_load(
        self, ptrs, as_bool(mask), *args
    )
