"""Mends Triton's interpreter where vLLM's own kernels meet its edges, spares it work that it repeats, and puts native
code in its place where there is any (`native`)."""

import numpy as np
import triton


def register() -> None:
    """Loaded by vLLM in every process; a second call changes nothing."""
    if not triton.knobs.runtime.interpret:
        return
    from triton.runtime import interpreter

    if hasattr(interpreter, "triton_cpu"):
        return
    interpreter.triton_cpu = True
    _mend_masks(interpreter.InterpreterBuilder)
    _patch_the_language_once(interpreter)
    # Arguments are on the CPU already: nothing to copy there and back.
    interpreter.GridExecutor._init_args_hst = lambda self, args, kwargs: (args, kwargs)
    interpreter.GridExecutor._restore_args_dev = lambda self, *args: None
    _give_libdevice_a_body(interpreter)
    # This kernel uses methods on a loop variable, which is a plain int here; vLLM's own torch code takes its place.
    from vllm.v1.sample.ops import topk_topp_sampler

    topk_topp_sampler.HAS_TRITON = False
    from triton_cpu.native import launch

    launch.install()


def _mend_masks(builder) -> None:
    """`block < size & flag` may come out as an integer array, which the interpreter's C code refuses as a mask."""
    plain_store, plain_load = builder.create_masked_store, builder.create_masked_load

    def as_bool(mask):
        mask.data = np.asarray(mask.data, dtype=bool)
        return mask

    builder.create_masked_store = lambda self, ptrs, value, mask, *rest: plain_store(
        self, ptrs, value, as_bool(mask), *rest
    )
    builder.create_masked_load = lambda self, ptrs, mask, *rest: plain_load(self, ptrs, as_bool(mask), *rest)


def _patch_the_language_once(interpreter) -> None:
    """The interpreter swaps all of triton.language in and out at every launch; here it stays in."""
    plain, done = interpreter._patch_lang, set()
    languages = {"tl": interpreter.tl, "core": interpreter.tl.core}

    class Kept:
        def restore(self) -> None:
            pass

    def patch_lang(fn):
        names = {name for name in ("tl", "core") if any(value is languages[name] for value in fn.__globals__.values())}
        if not names <= done:
            plain(fn)
            done.update(names)
        return Kept()

    interpreter._patch_lang = patch_lang


def _give_libdevice_a_body(interpreter) -> None:
    """The device library's functions are names for a compiler; called by the interpreter they return nothing."""
    from triton.language.extra import libdevice

    def log1p(x):
        return interpreter.tl.tensor(interpreter.TensorHandle(np.log1p(x.handle.data), x.handle.dtype), x.type)

    libdevice.log1p = log1p
