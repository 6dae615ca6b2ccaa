"""What can be told of an engine before it starts: backend, drafts, memory, CUDA graphs, and what costs speed."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

from vllm_std import advice
from vllm_std.models import full_layers
from vllm_std.patches import graph_batches, graphs, memory, probe
from vllm_std.refusals import BACKENDS
from vllm_std.roofline.shape import Shape
from vllm_std.tools.check.finding import Finding
from vllm_std.tools.plan.limits import WORKING_BYTES


def device_finding() -> Finding:
    device = probe.device()
    name = device["name"] or device["platform"]
    if "memory_gib" in device:
        name += f", {device['memory_gib']} GiB, capability {device['capability']}"
    return Finding("device", None, name)


def engine_findings(model: str, engine: dict[str, Any]) -> list[Finding]:
    """Of a server with std; model: folder or hub name; engine: arguments as `vllm.EngineArgs` names them."""
    try:
        config = probe.engine_config(model, {"spec_method": "std"} | engine)
    except Exception as error:  # vLLM, transformers and a hub each raise classes of their own for a model they refuse
        return [Finding("model", False, _first_sentence(error))]
    options = config.speculative_config
    drafts = f"up to {options.num_speculative_tokens} tokens a round over top_k={options.top_k}"
    findings = [
        Finding("model", True, f"{model}: std would start"),
        _backend_finding(probe.backend(config)),
        Finding("drafts", None, f"{drafts}, selection={options.selection}"),
    ]
    device = probe.device()
    slow = chain(advice.machine_advice(device["platform"]), _engine_advice(config, device))
    return [*findings, *_resource_findings(config), *(Finding("slow", None, sentence) for sentence in slow)]


def _first_sentence(error: Exception) -> str:
    """Of an error: vLLM adds lines of advice, and pydantic wraps both and knows which argument it was."""
    text = str(error)
    if hasattr(error, "errors"):
        (detail, *_) = error.errors()
        text = detail["msg"].removeprefix("Value error, ")
        if text == detail["msg"]:  # pydantic's own sentence, which does not name the argument
            text = f"{'.'.join(map(str, detail['loc']))}: {text}"
    return (text.strip() or type(error).__name__).splitlines()[0]


def _backend_finding(backend: str) -> Finding:
    if backend in BACKENDS:
        return Finding("backend", True, backend)
    instead = f"use --attention-backend {' or '.join(BACKENDS)}"
    return Finding("backend", False, f"{backend} is not one std drafts on: {instead}")


def _resource_findings(config: Any) -> Iterator[Finding]:
    """Memory and CUDA graphs; config: the engine's VllmConfig."""
    if config.cache_config.block_size:  # else the attention backend chooses it when the engine starts
        fixed, share = _std_memory(config)
        says = f"{share:.1%} of the KV cache for key summaries, and {fixed / 2**20:.0f} MiB besides"
        yield Finding("memory", None, says)
    compilation = config.compilation_config
    mode = compilation.cudagraph_mode
    if compilation.cudagraph_capture_sizes and mode is not None and graphs.captures_decoding(mode):
        planned = graph_batches.planned(config, probe.mixed_batches(config))
        plain = sum(graph.get("uniform_token_count") == 1 for graph in planned)
        yield Finding("graphs", None, f"{len(planned)} CUDA graphs of the dense pass; {plain} without std")


def _std_memory(config: Any) -> tuple[int, float]:
    """(bytes, bytes for each byte of KV cache) as `memory.needs`, and the observation queries, which vLLM's memory
    profile counts by itself."""
    fixed, share = memory.needs(config)
    model, options = config.model_config, config.speculative_config
    if not options.needs_queries:
        return fixed, share
    layers = len(full_layers(model.hf_text_config))
    heads = model.get_num_attention_heads(config.parallel_config)
    queries = config.scheduler_config.max_num_seqs * (options.num_speculative_tokens + 1) * heads
    return fixed + layers * queries * model.get_head_size() * model.dtype.itemsize, share


def _engine_advice(config: Any, device: dict[str, Any]) -> Iterator[str]:
    """Sentences; config: the engine's VllmConfig; device: as `probe.device` describes it."""
    cache = config.cache_config
    if not cache.block_size:
        return
    options = config.speculative_config
    yield from advice.mask_advice(options, cache.block_size)
    shape = Shape.of(config.model_config, cache.cache_dtype, config.parallel_config.tensor_parallel_size)
    kv_bytes = cache.kv_cache_memory_bytes
    if kv_bytes is None and "memory_gib" in device:
        usable = device["memory_gib"] * 2**30 * cache.gpu_memory_utilization
        kv_bytes = max(0, usable - shape.weights.stored - WORKING_BYTES)
    if kv_bytes is not None:
        max_num_seqs = config.scheduler_config.max_num_seqs
        bytes_each = _std_memory(config)[0] // max_num_seqs
        mask = options.mask_shape(cache.block_size)
        yield from advice.batch_advice(max_num_seqs, int(kv_bytes // shape.kv_bytes), mask, bytes_each)
