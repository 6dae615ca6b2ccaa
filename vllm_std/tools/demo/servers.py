"""The servers of the demo: of plain vLLM and of std, alike but for that."""

import os
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

from vllm_std.patches import probe
from vllm_std.tools.bench.sides import ServerOf

# Arguments of vLLM for a single question, and those that a CPU adds: the KV cache has a size of its own there, so no
# video need be encoded at start-up to find what memory is left for it.
FOR_ONE = {"max_model_len": 8192, "max_num_batched_tokens": 8192, "max_num_seqs": 8}
FOR_ANY_ON_CPU = {"block_size": 32, "kv_cache_memory_bytes": 2**30, "skip_mm_profiling": True}
FOR_ONE_ON_CPU = FOR_ANY_ON_CPU | {"dtype": "float32", "enforce_eager": True}
# The same for several clients. Streams are sent in pieces of some tokens, because the clients share the machine with
# the servers; and all cores compute: a worker with a process of its own is waited for by a loop that takes one of them.
FOR_MANY = {"max_model_len": 16384, "max_num_batched_tokens": 16384, "stream_interval": 16}
FOR_MANY_ON_CPU = FOR_ANY_ON_CPU | {"distributed_executor_backend": "uni"}
ALL_FRAMES = {"media_io_kwargs": {"video": {"video_backend": "opencv", "num_frames": -1}}}
ALL_CORES = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}  # environment


def on_cpu() -> bool:
    return probe.device()["platform"] == "cpu"


def for_one(given: dict[str, Any]) -> dict[str, Any]:
    """Arguments of vLLM for a single question; given: the user's."""
    return FOR_ONE | (FOR_ONE_ON_CPU if on_cpu() else {}) | given


def for_many(given: dict[str, Any], clients: int, all_frames: bool) -> dict[str, Any]:
    """The same for several clients; all_frames: of a video that has more than vLLM would take."""
    usual = FOR_MANY | {"max_num_seqs": clients} | (ALL_FRAMES if all_frames else {})
    return usual | (FOR_MANY_ON_CPU | {"dtype": fast_cpu_dtype()} if on_cpu() else {}) | given


def fast_cpu_dtype() -> str:
    """bfloat16, or float32 on a CPU without instructions for it, where matrix products are up to ten times as fast."""
    import torch

    return "bfloat16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "float32"


def use_all_cores() -> None:
    """Of servers that start from now on."""
    os.environ.update(ALL_CORES, OMP_NUM_THREADS=str(len(os.sched_getaffinity(0))))


@contextmanager
def started(server_of: ServerOf, sides: Collection[str], at_a_time: int) -> Iterator[ServerOf]:
    """The same servers; those of `sides` start now, so many at a time, beside what is done until they are needed."""
    with ExitStack() as stack, ThreadPoolExecutor(at_a_time) as pool:
        starting = {side: pool.submit(stack.enter_context, server_of(side)) for side in sides}
        yield lambda side: nullcontext(starting[side].result()) if side in starting else server_of(side)
