"""Timed steps on the engine's own model and hardware, before it serves.

The steps go the way of every other step, through the executor, so they take what steps take: CUDA graphs, tensor
parallelism and the host's share included. Their requests have no content, only lengths; the KV blocks they use hold
no request's tokens yet, and nothing finds them in the prefix cache.
"""

import time
from collections.abc import Iterator

from vllm_std.control.fitting import Point
from vllm_std.patches.blocks import tokens_that_fit
from vllm_std.patches.timed_steps import TimedRequests, cache_groups

STEPS = 5  # timed for each batch size, context length and draft length
BATCHES = (1, 8, 32, 128, 256)  # batch sizes, in requests
MAX_TOKENS = 1 << 20  # cached tokens of a batch; more say nothing new


def timed_steps(executor, deadline: float) -> Iterator[Point]:
    """Plain steps, and rounds of the least and the greatest draft length, over batch sizes and two context lengths.
    deadline: time.perf_counter() after which none begins."""
    vllm_config = executor.vllm_config
    options = vllm_config.speculative_config
    lengths = sorted({0, 1, options.num_speculative_tokens})
    room = (STEPS + 2) * (sum(lengths) + len(lengths)) + options.proposals
    for batch, context in _loads(vllm_config, room):
        requests = TimedRequests(executor, batch, context, room)
        for length in lengths:
            if time.perf_counter() > deadline:
                break
            yield Point(batch, batch * context, length, requests.time(length, STEPS))
        requests.finish()


def _loads(vllm_config, room: int) -> list[tuple[int, int]]:
    """(requests, cached tokens of each): batch sizes with contexts about as long as a mask, and two with long ones.
    What tells most comes first, because slow hardware does not come to the end. room: tokens that a request needs for
    what its steps generate."""
    options = vllm_config.speculative_config
    longest = vllm_config.model_config.max_model_len - room
    blocks = vllm_config.cache_config.num_gpu_blocks - 1
    mask = options.mask_shape(vllm_config.cache_config.block_size).max_length + options.num_speculative_tokens
    batches = _batches(vllm_config)
    if not batches:
        return []

    def context(batch: int) -> int:
        return min(longest, MAX_TOKENS // batch, tokens_that_fit(cache_groups(vllm_config), blocks // batch, room))

    short = {batch: min(mask, context(batch) // 2) for batch in batches}
    most = max((batch for batch in batches if context(batch) >= 4 * mask), default=1)
    loads = [(1, short[1]), (1, context(1)), (most, short[most]), (most, context(most)), *short.items()]
    return [load for load in dict.fromkeys(loads) if load[1] > 1]


def _batches(vllm_config) -> list[int]:
    """Batch sizes whose drafts can be verified in one pass."""
    scheduler = vllm_config.scheduler_config
    most = min(BATCHES[-1], scheduler.max_num_seqs)
    tokens = 1 + vllm_config.speculative_config.num_speculative_tokens
    sizes = sorted({*BATCHES, most})
    return [batch for batch in sizes if batch <= most and batch * tokens <= scheduler.max_num_batched_tokens]
