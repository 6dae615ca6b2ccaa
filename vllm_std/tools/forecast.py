"""What `vllm-std check` tells of an engine before it starts: memory, CUDA graphs, and what costs speed."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

from vllm_std import advice
from vllm_std.models import full_layers
from vllm_std.patches import graphs, memory, probe
from vllm_std.roofline.shape import Shape
from vllm_std.selection import POLICIES
from vllm_std.tools.plan.limits import WORKING


def sentences(config: Any, device: dict[str, Any]) -> Iterator[tuple[str, None, str]]:
    """(what of, None, sentence); config: the engine's VllmConfig; device: as `probe.device` describes it."""
    if config.cache_config.block_size:  # else the attention backend chooses it
        fixed, share = _memory(config)
        yield "memory", None, f"{share:.1%} of the KV cache for key summaries, and {fixed / 2**20:.0f} MiB besides"
    compilation, mode = config.compilation_config, config.compilation_config.cudagraph_mode
    if compilation.cudagraph_capture_sizes and mode is not None and graphs.captures_decoding(mode):
        planned = graphs.planned(config, probe.mixed_batches(config))
        plain = sum(graph.get("uniform_token_count") == 1 for graph in planned)
        yield "graphs", None, f"{len(planned)} CUDA graphs of the target's whole passes; {plain} without std"
    for cost in chain(advice.of_the_machine(device["platform"]), _costs(config, device)):
        yield "slow", None, cost


def _memory(config: Any) -> tuple[int, float]:
    """As `memory.needs`, with the observation queries, which vLLM's memory profile knows of."""
    model, options, (fixed, share) = config.model_config, config.speculative_config, memory.needs(config)
    if not POLICIES[options.selection].needs_queries:
        return fixed, share
    layers, heads = len(full_layers(model.hf_text_config)), model.get_num_attention_heads(config.parallel_config)
    queries = config.scheduler_config.max_num_seqs * (options.num_speculative_tokens + 1) * heads
    return fixed + layers * queries * model.get_head_size() * model.dtype.itemsize, share


def _costs(config: Any, device: dict[str, Any]) -> Iterator[str]:
    options, cache, most = config.speculative_config, config.cache_config, config.scheduler_config.max_num_seqs
    if not cache.block_size:
        return
    yield from advice.of_the_mask(options, cache.block_size)
    shape = Shape.of(config.model_config, cache.cache_dtype, config.parallel_config.tensor_parallel_size)
    room = cache.kv_cache_memory_bytes
    if room is None and "memory_gib" in device:
        room = device["memory_gib"] * 2**30 * cache.gpu_memory_utilization - shape.stored - WORKING
    if room is not None:
        tokens = int(max(room, 0) // shape.kv_bytes)
        yield from advice.of_the_batch(most, tokens, options.mask_shape(cache.block_size), _memory(config)[0] // most)
