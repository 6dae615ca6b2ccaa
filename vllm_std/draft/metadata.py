"""Attention metadata of draft steps over the masks of a round, and what the model's layers look up meanwhile."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

from vllm_std.draft.inputs import StepBatch
from vllm_std.patches.connector import connector_muted
from vllm_std.patches.metadata import limit_length, mask_metadata, windowed_metadata
from vllm_std.patches.spec_decode import (
    BatchDescriptor,
    CUDAGraphMode,
    build_slot_mappings_by_layer,
    set_forward_context,
)


def masked_metadata(speculator, attn_metadata: dict[str, Any]) -> dict[str, Any]:
    """Metadata with the masked block table of each full layer; windowed layers attend as in a dense pass."""
    std = speculator.std
    masked = mask_metadata(attn_metadata, dict(zip(std.target.names, std.selector.tables)))
    limit_length(masked, speculator.draft_max_seq_len, std.target.layers[0].num_kv_heads)
    windowed = windowed_metadata(attn_metadata, masked, std.buffers.true_lens, speculator.max_model_len)
    return masked | windowed


def eager_batch(speculator, num_reqs: int, batch_desc, max_context_lens, across_dp) -> StepBatch:
    """The batch of draft steps without CUDA graphs; max_context_lens: [reqs] on the host, None to skip attention."""
    batch = StepBatch(num_reqs, batch_desc.num_tokens, None, None, across_dp)
    if max_context_lens is not None:
        query_len = speculator.std.buffers.query_len
        lens = max_context_lens.clamp(max=speculator.std.selector.mask.max_length)
        metadata = speculator._build_uniform_attn_metadata(batch_desc, num_reqs, query_len, lens, step=query_len)
        batch.metadata = masked_metadata(speculator, metadata)
        slots = speculator.block_tables.slot_mappings[:, : batch_desc.num_tokens]
        batch.slots = build_slot_mappings_by_layer(slots, speculator.kv_cache_config)
    return batch


def map_windowed_tables(speculator) -> None:
    """Fill the tables of kernel blocks that graphs read, where a backend has smaller blocks than the KV cache."""
    for group in chain.from_iterable(speculator.attn_groups):
        if group is not speculator.std.group:
            group.map_to_kernel_block_table(speculator.block_tables.input_block_tables[group.kv_cache_group_id])


@contextmanager
def step_context(speculator, batch: StepBatch, mode: CUDAGraphMode) -> Iterator[None]:
    """vLLM's forward context of draft steps, in which KV connectors have no part."""
    forward = set_forward_context(
        batch.metadata,
        speculator.vllm_config,
        num_tokens=batch.num_tokens,
        num_tokens_across_dp=batch.across_dp,
        slot_mapping=batch.slots,
        cudagraph_runtime_mode=mode,
        batch_descriptor=BatchDescriptor(batch.num_tokens),
    )
    with connector_muted(), forward:
        yield
