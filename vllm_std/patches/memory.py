"""What selection takes of a worker's memory, before there is a KV cache: vLLM's memory profile does not know of it."""

from typing import Any

from vllm_std.models import full_layers
from vllm_std.patches.wrapping import Patch

MEMORY = Patch(
    name="memory",
    replaces="vllm.v1.executor.Executor.determine_available_memory",
    why=(
        "key summaries grow with the number of KV blocks, which vLLM derives from all memory that is free; and vLLM "
        "profiles its memory before there is a KV cache, which the tables and the workspace of selection belong to"
    ),
    upstream="none",
    remove_when="a speculator can ask for memory by the KV block",
)


def determine_available_memory(original, self) -> list[int]:
    """Executor.determine_available_memory: bytes for the KV cache of each worker, less what selection takes."""
    memory = original(self)
    fixed, share = needs(self.vllm_config, self.get_kv_cache_specs()[0])
    return [int((available - fixed) / (1 + share)) for available in memory]


def needs(vllm_config: Any, specs: dict[str, Any] | None = None) -> tuple[int, float]:
    """Bytes of a worker that selection takes, and bytes of key summaries for each byte of KV cache.

    specs: KVCacheSpec of each layer of the engine; without them what can be told from the model's config.
    """
    from vllm_std.selection.policies import POLICIES
    from vllm_std.selection.workspace import selection_bytes

    model, options, cache = vllm_config.model_config, vllm_config.speculative_config, vllm_config.cache_config
    reqs, heads = vllm_config.scheduler_config.max_num_seqs, model.get_num_attention_heads(vllm_config.parallel_config)
    layers = len(full_layers(model.hf_text_config))
    fixed, share = selection_bytes(options, cache.block_size, layers, reqs, heads), 0.0
    if POLICIES[options.selection].needs_summaries:
        share = _summaries(vllm_config) * _full_part(vllm_config, specs)
    return fixed, share


def _summaries(vllm_config: Any) -> float:
    """Bytes for each byte of the KV of a full layer."""
    from vllm.utils.torch_utils import kv_cache_dtype_str_to_dtype

    from vllm_std.selection.reads import share_of_kv

    model, cache = vllm_config.model_config, vllm_config.cache_config
    cached = kv_cache_dtype_str_to_dtype(cache.cache_dtype, model)
    return share_of_kv(model.dtype.itemsize, cached.itemsize, cache.block_size)


def _full_part(vllm_config: Any, specs: dict[str, Any] | None) -> float:
    """KV of all full layers, as a part of what vLLM reserves for a block, at most.

    KV cache groups take their blocks from one pool, so each block may become one of the full layers', with summaries.
    """
    if not vllm_config.scheduler_config.disable_hybrid_kv_cache_manager:
        return 1.0
    if specs is None:
        text = vllm_config.model_config.hf_text_config
        return len(full_layers(text)) / text.num_hidden_layers
    from vllm_std.patches.groups import is_full

    pages = {name: spec.page_size_bytes for name, spec in specs.items()}
    return sum(pages[name] for name, spec in specs.items() if is_full(spec)) / sum(pages.values())
