"""KV blocks by KV cache group: how many tokens of a request fit, and block ids for requests that have no content."""

from collections.abc import Iterator
from itertools import count
from typing import Any

from vllm_std.mask import cdiv

Group = tuple[int, int]  # tokens of a block; tokens of the sliding window of its layers, 0 where they see all


def groups_of(kv_cache_config: Any) -> list[Group]:
    """Of vLLM's KVCacheConfig; where windowed layers share a group with full ones, its blocks are kept for all."""
    specs = [group.kv_cache_spec for group in kv_cache_config.kv_cache_groups]
    return [(spec.block_size, _window(spec)) for spec in specs]


def _window(spec: Any) -> int:
    from vllm.v1.kv_cache_interface import SlidingWindowSpec

    return spec.sliding_window if isinstance(spec, SlidingWindowSpec) else 0


def tokens_that_fit(groups: list[Group], blocks: int, room: int) -> int:
    """Tokens of a request in so many blocks of all groups, if it is to have `room` for more; less than 1 where that
    alone does not fit."""
    left = blocks - sum(cdiv(window + room, size) + 1 for size, window in groups if window)
    whole = [size for size, window in groups if not window]
    return left // len(whole) * min(whole) - room


def block_ids(groups: list[Group], batch: int, context: int, room: int) -> Iterator[tuple[list[int], ...]]:
    """For each of `batch` requests the blocks of each group that hold `context` tokens and `room` more; the null block,
    0, stands for those before a window, as where vLLM has freed them."""
    free = count(1)
    for _ in range(batch):
        yield tuple(_of_group(free, size, window, context, room) for size, window in groups)


def _of_group(free: Iterator[int], size: int, window: int, context: int, room: int) -> list[int]:
    needed = cdiv(context + room, size)
    freed = max(0, context - window) // size if window else 0
    return [0] * freed + [next(free) for _ in range(needed - freed)]
