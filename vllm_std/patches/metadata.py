"""Attention metadata of draft steps: a block table for each layer, shorter lengths, and plans made once."""

import copy
from itertools import chain
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from vllm_std.patches.wrapping import Patch

H100_PROCESSORS = 132  # multiprocessors, for a CPU, on which FlashAttention runs in tests alone

TABLE_PER_LAYER = Patch(
    name="table per layer",
    replaces="the attention metadata dict of a draft step (copied, with another block table for each layer)",
    why="builders make one metadata for all layers of a KV cache group",
    upstream="vLLM RFC #47351",
    remove_when="metadata builders accept a block table per layer",
)
PLAN = Patch(
    name="plan",
    replaces=(
        "supports_draft_decode_metadata_update and update_draft_decode_metadata of std's own CPU_ATTN builders (set), "
        "scheduler_metadata of the layers of a draft step (shared)"
    ),
    why=(
        "the CPU backend plans attention when metadata is built, and building it for each draft step took as long as a "
        "fifth of that step"
    ),
    upstream="none",
    remove_when="CPUAttentionMetadataBuilder updates draft metadata in place",
)


def mask_metadata(metadata: dict[str, Any], tables: dict[str, Tensor]) -> dict[str, Any]:
    """Attention metadata with its own block table for each layer; tables: {layer name: [reqs, width] int32}."""
    masked = {}
    for name, table in tables.items():
        masked[name] = copy.copy(metadata[name])
        masked[name].block_table = table[: metadata[name].block_table.shape[0]]
    return masked


def limit_length(metadata: dict[str, Any], max_seq_len: int, kv_heads: int) -> None:
    """Tell attention kernels how long a masked request can be, in tokens; its context may be longer.

    FlashAttention does not split requests over parts of the GPU where there is one for each part already.
    """
    for layer in metadata.values():
        layer.max_seq_len = max_seq_len
        if getattr(layer, "max_num_splits", 0) and len(layer.seq_lens) * kv_heads >= processors(layer.seq_lens.device):
            layer.max_num_splits = 1


def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU."""
    if device.type != "cuda":
        return H100_PROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


def windowed_metadata(
    metadata: dict[str, Any], masked: dict[str, Any], lengths: Tensor, max_seq_len: int
) -> dict[str, Any]:
    """Attention metadata of the layers that are not masked, with their true lengths.

    lengths: [max_num_reqs] int32 tokens, none more than `max_seq_len`.
    """
    made: dict[int, Any] = {}
    for layer in (layer for name, layer in metadata.items() if name not in masked):
        if id(layer) not in made:
            windowed = copy.copy(layer)
            windowed.seq_lens = lengths[: len(layer.seq_lens)]
            windowed.max_seq_len = max_seq_len
            made[id(layer)] = windowed
    return {name: made[id(layer)] for name, layer in metadata.items() if name not in masked}


def plan_on_cpu(attn_groups) -> None:
    """Have std's own builders of CPU_ATTN update the metadata of the first draft step, instead of building it anew."""
    for group in chain.from_iterable(attn_groups):
        if group.backend.get_name() == "CPU_ATTN":
            builder = group.get_metadata_builder()
            builder.supports_draft_decode_metadata_update = True
            builder.update_draft_decode_metadata = lambda metadata, builder=builder: plan_again(builder, metadata)


def plan_again(builder, metadata) -> None:
    """Plan CPU attention for the lengths as they are now."""
    common = SimpleNamespace(**vars(metadata), num_reqs=len(metadata.seq_lens), block_table_tensor=metadata.block_table)
    metadata.scheduler_metadata = builder.build(0, common).scheduler_metadata


def share_plan(attn_groups, metadata: dict[str, Any]) -> None:
    """Give all layers of a group the plan of its first layer, the one that a backend updates."""
    for group in chain.from_iterable(attn_groups):
        updated = metadata[group.layer_names[0]]
        if hasattr(updated, "scheduler_metadata"):
            for name in group.layer_names:
                metadata[name].scheduler_metadata = updated.scheduler_metadata
