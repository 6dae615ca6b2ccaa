"""Where an engine's cost model comes from: a file of an earlier start, timed steps, or data sheets."""

import hashlib
import time
from pathlib import Path

import vllm
import vllm.envs as envs
from vllm.platforms import current_platform

from vllm_std import __version__
from vllm_std.control import CostModel, Point, cost_file, fit
from vllm_std.control.timing import timed_steps
from vllm_std.faults import Faults, logger

SECONDS = 20.0  # after which no further steps are timed


def calibrate(executor) -> None:
    """Leave the cost model in the engine's StdConfig: measured before, measured now, or estimated."""
    began = time.perf_counter()
    vllm_config = executor.vllm_config
    options = vllm_config.speculative_config
    path = _path(vllm_config)
    costs = cost_file.load(path)
    if costs is not None:
        costs.source += _from_file(path)
    # A KV connector must be told of every step, and these are not its business.
    elif options.calibrate and vllm_config.kv_transfer_config is None:
        costs = _measured(executor, began + SECONDS)
    options.costs = costs or _estimated(vllm_config)
    _announce(options, began)


def cost_model(vllm_config) -> CostModel:
    """The cost model that `calibrate` left."""
    return vllm_config.speculative_config.costs or _estimated(vllm_config)


def save(vllm_config, costs: CostModel) -> None:
    """Save a measured cost model with the corrections that served steps made to it."""
    path = _path(vllm_config)
    if cost_file.load(path) is not None:
        costs.source = costs.source.removesuffix(_from_file(path))
        _save(costs, path)


def _save(costs: CostModel, path: Path) -> None:
    """No failure of a cache may end an engine."""
    try:
        cost_file.save(costs, path)
    except OSError as error:
        logger.warning_once("std: what steps take is not kept for the next start: %s.", error)


def _from_file(path: Path) -> str:
    """What the source of a cost model says of the file that it was loaded from."""
    return f", kept in {path}"


def _announce(options, began: float) -> None:
    costs = options.costs
    fewest = costs.batch[0]
    most = costs.batch[-1]
    logger.info_once(
        "std: the draft length of each step is chosen among %s. A plain step of %d requests takes %.2f ms and %.2f ms "
        "more for each 32K of cached tokens; of %d: %.2f ms; a draft step %.2f ms (%s, in %.1f s).",
        ", ".join(map(str, options.draft_lengths)),
        fewest,
        1e3 * costs.dense_pass(fewest, 0),
        1e3 * costs.per_kv * 32 * 1024,
        most,
        1e3 * costs.dense_pass(most, 0),
        1e3 * costs.draft[-1],
        costs.source,
        time.perf_counter() - began,
    )


def _measured(executor, deadline: float) -> CostModel | None:
    """A cost model fitted to timed steps, and saved. None where too few steps could be timed."""
    vllm_config = executor.vllm_config
    points: list[Point] = []
    with Faults().caught("calibration"):
        points.extend(timed_steps(executor, deadline))
    if len({point.kv for point in points}) <= len({point.batch for point in points}):
        return None
    from vllm_std.roofline.estimate import engine_windows

    costs = fit(points, f"measured on {_device()}", engine_windows(vllm_config, _device()))
    _save(costs, _path(vllm_config))
    return costs


def _estimated(vllm_config) -> CostModel:
    from vllm_std.roofline.estimate import for_engine

    return for_engine(vllm_config, _device())


def _device() -> str:
    return current_platform.get_device_name() if current_platform.is_cuda_alike() else current_platform.device_type


def _path(vllm_config) -> Path:
    """In vLLM's cache directory, by all that changes what a step takes."""
    options = vllm_config.speculative_config
    model = vllm_config.model_config
    cache = vllm_config.cache_config
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
