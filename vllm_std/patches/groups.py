"""The layers of a target by what a draft step does with them, and their KV cache groups.

Full layers attend to the whole context, so drafts mask them. Windowed layers attend to a sliding window of it, which
costs little: a draft step runs them as they are, over their own block table, with true lengths and true slots. With
vLLM's hybrid KV cache manager windowed layers have KV cache groups of their own, whose blocks before the window are
freed; without it all layers share one group, and its blocks.
"""

from typing import Any

import torch
from vllm.config import get_layers_from_vllm_config
from vllm.model_executor.layers.attention import Attention
from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec
from vllm.v1.worker.gpu.attn_utils import init_attn_backend
from vllm.v1.worker.gpu.model_states.default import DefaultModelState

from vllm_std.patches.wrapping import Patch
from vllm_std.refusals import BACKENDS, FULL_ATTENTION, unsupported

WINDOWED_LAYERS = Patch(
    name="windowed layers",
    replaces=(
        "vllm.v1.worker.gpu.attn_utils.init_attn_backend (called, for groups of full and of windowed layers); "
        "the lengths in the attention metadata of a draft step (others for windowed layers); Executor."
        "initialize_from_config (the KV cache groups are noted, for the timed steps of calibration)"
    ),
    why="a speculator builds one metadata for all layers of a KV cache group, of one length for all groups",
    upstream="none",
    remove_when="metadata builders accept lengths per layer",
)


def attention_layers(vllm_config) -> dict[str, Attention]:
    """The target's decoder attention layers that own a KV cache, by layer name, in model order."""
    layers = get_layers_from_vllm_config(vllm_config, Attention)
    return {name: layer for name, layer in layers.items() if layer.get_kv_cache_spec(vllm_config) is not None}


def full_layers(vllm_config) -> dict[str, Attention]:
    """Those of them that attend to the whole context."""
    layers = attention_layers(vllm_config)
    return {name: layer for name, layer in layers.items() if is_full(layer.get_kv_cache_spec(vllm_config))}


def is_full(spec: Any) -> bool:
    return type(spec) is FullAttentionSpec and not spec.sliding_window and not spec.attention_chunk_size


def require_masked_attention(vllm_config, model_state) -> None:
    """Refuse what only a worker can see. Raises ValueError naming the model and what works."""
    layers = attention_layers(vllm_config)
    specs = [layer.get_kv_cache_spec(vllm_config) for layer in layers.values()]
    known = all(is_full(spec) or type(spec) is SlidingWindowSpec for spec in specs)
    reason = None
    if not known:
        reason = "KV caches of " + ", ".join(sorted({type(spec).__name__ for spec in specs}))
    elif not any(map(is_full, specs)):
        reason = "a sliding window in every layer"
    elif any(getattr(layer.impl, "alibi_slopes", None) is not None for layer in layers.values()):
        reason = "ALiBi positions"
    elif type(model_state) is not DefaultModelState:
        reason = type(model_state).__name__
    if reason:
        raise unsupported("--model", f"{vllm_config.model_config.model} ({reason})", FULL_ATTENTION)


def draft_groups(vllm_config, kv_cache_config, device: torch.device, full: set[str]):
    """([KV cache groups] of [attention groups] for draft steps, the one of the full layers).

    A KV cache group that holds full and windowed layers has an attention group for each, because they differ in length.
    Raises ValueError where std does not know a backend.
    """
    windowed = {name for group in kv_cache_config.kv_cache_groups for name in group.layer_names} - full
    kinds = [init_attn_backend(kv_cache_config, vllm_config, device, names)[0] for names in (full, windowed)]
    masked = [group for groups in kinds[0] for group in groups]
    if len(masked) > 1:
        raise ValueError(
            f"speculative method 'std' needs one block table for all full-attention layers, and vLLM gives them "
            f"{len(masked)}: use --disable-hybrid-kv-cache-manager."
        )
    return [[*first, *second] for first, second in zip(*kinds)], masked[0]


def require_backends(attn_groups) -> None:
    """Raises ValueError where std does not know the attention backend of a group, or cannot draft on it."""
    all_groups = [group for groups in attn_groups for group in groups]
    names = sorted({group.backend.get_name() for group in all_groups})
    updated = all(group.supports_draft_decode_metadata_update for group in all_groups)
    if len(names) > 1 or names[0] not in BACKENDS or not updated:
        raise unsupported("--attention-backend", ",".join(names), f"use {' or '.join(BACKENDS)}, one for all layers")
