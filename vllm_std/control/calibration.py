"""Timed steps on the engine's own model and hardware, before it serves: the cost table of the controller.

The steps go the way of every other step, through the executor, so they take what steps take: CUDA graphs, tensor
parallelism and the host's share included. Their requests have no content, only lengths; the KV blocks they use hold
no request's tokens yet, and nothing finds them in the prefix cache.
"""

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

import vllm
import vllm.envs as envs
from vllm.platforms import current_platform

from vllm_std import __version__
from vllm_std.control import Costs, Point
from vllm_std.faults import Faults, logger
from vllm_std.patches.blocks import tokens_that_fit
from vllm_std.patches.timed_steps import TimedRequests, cache_groups

STEPS, BATCHES, SECONDS = 5, (1, 8, 32, 128, 256), 20.0
MAX_TOKENS = 1 << 20  # more cached tokens than this say nothing new


def calibrate(executor) -> None:
    """Leave the cost table in the engine's StdConfig: measured before, measured now, or estimated."""
    vllm_config, began = executor.vllm_config, time.perf_counter()
    options, path = vllm_config.speculative_config, _path(vllm_config)
    found = Costs.load(path)
    # A KV connector must be told of every step, and these are not its business.
    if found is None and options.calibrate and vllm_config.kv_transfer_config is None:
        points: list[Point] = []
        with Faults().caught("calibration"):
            points.extend(_measure(executor, began + SECONDS))
        if len({point.kv for point in points}) > len({point.batch for point in points}):
            from vllm_std.roofline.estimate import engine_windows

            found = Costs.fit(points, f"measured on {_device()}", engine_windows(vllm_config, _device()))
            _save(found, path)
    elif found is not None:
        found.source += f", kept in {path}"
    options.costs = found if found is not None else _estimate(vllm_config)
    _announce(options, began)


def costs(vllm_config) -> Costs:
    """The cost table that `calibrate` left."""
    return vllm_config.speculative_config.costs or _estimate(vllm_config)


def keep(vllm_config, table: Costs) -> None:
    """Save a measured table with what the served steps corrected in it."""
    path = _path(vllm_config)
    if Costs.load(path) is not None:
        table.source = table.source.removesuffix(f", kept in {path}")
        _save(table, path)


def _save(table: Costs, path: Path) -> None:
    """No failure of a cache may end an engine."""
    try:
        table.save(path)
    except OSError as error:
        logger.warning_once("std: what steps take is not kept for the next start: %s.", error)


def _announce(options, began: float) -> None:
    table, batch = options.costs, options.costs.batch[-1]
    kv = 32 * 1024 * batch
    logger.info_once(
        "std: the draft length of each step is chosen among %s. A plain step of %d requests takes %.2f ms and %.2f ms "
        "more for each 32K of cached tokens; of %d: %.2f ms; a draft step %.2f ms (%s, in %.1f s).",
        ", ".join(map(str, options.draft_lengths)), table.batch[0], 1e3 * table.dense_pass(table.batch[0], 0),
        1e3 * table.per_kv * kv / batch, batch, 1e3 * table.dense_pass(batch, 0), 1e3 * table.draft[-1], table.source,
        time.perf_counter() - began,
    )  # fmt: skip


def _estimate(vllm_config) -> Costs:
    from vllm_std.roofline.estimate import for_engine

    return for_engine(vllm_config, _device())


def _device() -> str:
    return current_platform.get_device_name() if current_platform.is_cuda_alike() else current_platform.device_type


def _path(vllm_config) -> Path:
    """In vLLM's cache directory, by all that changes what a step takes."""
    options, model, cache = vllm_config.speculative_config, vllm_config.model_config, vllm_config.cache_config
    graphs = vllm_config.compilation_config
    parts = (
        vllm.__version__, __version__, model.model, model.revision, str(model.dtype), model.quantization,
        cache.cache_dtype, cache.block_size, vllm_config.parallel_config.tensor_parallel_size,
        vllm_config.scheduler_config.max_num_seqs,
        model.max_model_len, model.enforce_eager, str(vllm_config.attention_config.backend),
        graphs.cudagraph_mode, graphs.cudagraph_capture_sizes, vllm_config.lora_config is not None,
        *(getattr(options, name) for name in options.OPTIONS), _device(),
    )  # fmt: skip
    digest = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
    return Path(envs.VLLM_CACHE_ROOT) / "vllm_std" / f"costs-{digest}.json"


def _measure(executor, deadline: float) -> Iterator[Point]:
    """Plain steps, and rounds of the least and the greatest draft length, over batch sizes and two context lengths."""
    vllm_config = executor.vllm_config
    options, blocks = vllm_config.speculative_config, vllm_config.cache_config.num_gpu_blocks - 1
    lengths = sorted({0, 1, options.num_speculative_tokens})
    room = (STEPS + 2) * (sum(lengths) + len(lengths))
    for batch, context in _loads(vllm_config, blocks, room):
        requests = TimedRequests(executor, batch, context, room)
        for length in lengths:
            if time.perf_counter() > deadline:
                break
            yield Point(batch, batch * context, length, requests.time(length, STEPS))
        requests.finish()


def _loads(vllm_config, blocks: int, room: int) -> Iterator[tuple[int, int]]:
    """(requests, cached tokens of each): batch sizes with contexts about as long as a mask, and two with long ones.
    What tells most comes first, because slow hardware does not come to the end."""
    size, scheduler = vllm_config.cache_config.block_size, vllm_config.scheduler_config
    options, longest = vllm_config.speculative_config, vllm_config.model_config.max_model_len - room
    mask = options.mask_shape(size).max_length + options.num_speculative_tokens
    most = min(BATCHES[-1], scheduler.max_num_seqs)
    fits = [batch for batch in sorted({*BATCHES, most}) if batch <= most]
    fits = [batch for batch in fits if batch * (1 + options.num_speculative_tokens) <= scheduler.max_num_batched_tokens]

    def context(batch: int) -> int:
        return min(longest, MAX_TOKENS // batch, tokens_that_fit(cache_groups(vllm_config), blocks // batch, room))

    if not fits:
        return
    short = {batch: min(mask, context(batch) // 2) for batch in fits}
    most = max((batch for batch in fits if context(batch) >= 4 * mask), default=1)
    loads = [(1, short[1]), (1, context(1)), (most, short[most]), (most, context(most)), *short.items()]
    yield from (load for load in dict.fromkeys(loads) if load[1] > 1)
