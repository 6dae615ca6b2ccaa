"""The worker's side of the seam ledger: what the draft loop subclasses, imports, wraps and reads in vLLM."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import chain
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.config.compilation import CUDAGraphMode
from vllm.distributed.kv_transfer import kv_transfer_state
from vllm.distributed.parallel_state import get_tp_group
from vllm.forward_context import BatchDescriptor, set_forward_context
from vllm.lora.layers import LoRAMapping, LoRAMappingType
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.models.interfaces import requires_raw_input_tokens
from vllm.v1.worker.gpu.attn_utils import build_slot_mappings_by_layer
from vllm.v1.worker.gpu.dp_utils import dispatch_cg_and_sync_dp
from vllm.v1.worker.gpu.model_runner import GPUModelRunner
from vllm.v1.worker.gpu.spec_decode.target_dependent_ar.cudagraph_utils import SpeculatorCudaGraphManager
from vllm.v1.worker.gpu.spec_decode.target_dependent_ar.speculator import (
    TargetDependentARSpeculator,
    prepare_decode_inputs,
)

from vllm_std.patches.groups import (
    attention_layers,
    draft_groups,
    full_layers,
    require_backends,
    require_masked_attention,
    share_plan,
    windowed_metadata,
)
from vllm_std.selection.keys import KeyCache

__all__ = [
    "Adapters", "Attention", "BatchDescriptor", "CUDAGraphMode", "GPUModelRunner", "SpeculatorCudaGraphManager",
    "TargetDependentARSpeculator", "attention_layers", "build_slot_mappings_by_layer", "connector_muted",
    "dispatch_cg_and_sync_dp", "draft_groups", "find_keys", "full_layers", "limit_length", "mask_metadata",
    "observe_queries", "plan_on_cpu", "prepare_decode_inputs", "query_scale", "ranks_agree", "require_backends",
    "require_masked_attention", "requires_raw_input_tokens", "set_forward_context", "share_plan", "windowed_metadata",
]  # fmt: skip


def observe_queries(layer: Attention, index: int, see: Callable[[int, Tensor, Tensor], None]) -> None:
    """Call see(index, query [tokens, heads, head size], query_start_loc [reqs + 1]) before each forward of a layer.

    Not in passes of one token per request, which are those of plain decoding: their CUDA graphs are vLLM's own.
    """
    plain = layer.impl.forward

    def forward(layer_, query, key, value, kv_cache, attn_metadata, *args, **kwargs):
        if attn_metadata is not None and attn_metadata.max_query_len > 1:
            see(index, query, attn_metadata.query_start_loc)
        return plain(layer_, query, key, value, kv_cache, attn_metadata, *args, **kwargs)

    layer.impl.forward = forward


class Adapters:
    """The LoRA adapters of the dense pass, applied to what it verifies and to the draft steps after it.

    Without `--enable-lora` nothing.
    """

    def __init__(self, model):
        self.ids = np.zeros(0, dtype=np.int64)  # of each request of the pass, 0 for none
        self.manager = getattr(model, "lora_manager", None)
        if self.manager is None:
            return
        self.plain = self.manager.set_adapter_mapping

        def set_adapter_mapping(mapping: LoRAMapping) -> None:
            if mapping.type is LoRAMappingType.LANGUAGE:
                self.ids = np.array(mapping.prompt_mapping, dtype=np.int64)
            self.plain(mapping)

        self.manager.set_adapter_mapping = set_adapter_mapping

    def map(self, tokens: np.ndarray, padding: int = 0) -> None:
        """Until the next dense pass, run so many tokens of each request, [reqs], and then `padding` without one."""
        if self.manager is not None:
            known = (
                np.resize(self.ids, len(tokens)) if len(self.ids) else 0 * tokens
            )  # a dummy pass says nothing of them
            ids = (*known.repeat(tokens).tolist(), *[0] * padding)
            self.plain(LoRAMapping(ids, ids, is_prefill=True))


@contextmanager
def connector_muted() -> Iterator[None]:
    """Keep a KV connector's layer hooks out of draft steps: their K/V are not there to stay."""
    agent, kv_transfer_state._KV_CONNECTOR_AGENT = kv_transfer_state._KV_CONNECTOR_AGENT, None
    try:
        yield
    finally:
        kv_transfer_state._KV_CONNECTOR_AGENT = agent


def ranks_agree(seconds: float = 5.0) -> bool:
    """Whether every tensor-parallel rank comes here within so many seconds; called where a rank has failed."""
    group = get_tp_group()
    if group.world_size == 1:
        return True
    try:
        torch.distributed.monitored_barrier(group.cpu_group, timeout=timedelta(seconds=seconds))
    except RuntimeError:
        return False
    return True


def mask_metadata(metadata: dict[str, Any], tables: dict[str, Tensor]) -> dict[str, Any]:
    """Attention metadata with its own block table for each layer; tables: {layer name: [reqs, width] int32}."""
    masked = {}
    for name, table in tables.items():
        masked[name] = copy.copy(metadata[name])
        masked[name].block_table = table[: metadata[name].block_table.shape[0]]
    return masked


def limit_length(metadata: dict[str, Any], max_seq_len: int, kv_heads: int) -> None:
    """Tell attention kernels how long a masked request can be, which is not as long as its context, and not to split
    requests where there is one for each part of the GPU already."""
    for layer in metadata.values():
        layer.max_seq_len = max_seq_len
        if getattr(layer, "max_num_splits", 0) and len(layer.seq_lens) * kv_heads >= processors(layer.seq_lens.device):
            layer.max_num_splits = 1


def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; of a CPU, on which FlashAttention runs in tests alone, as many as an H100 has."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


def plan_on_cpu(attn_groups) -> None:
    """Have std's own builders of CPU_ATTN plan each draft step on the metadata of the first, as those of other backends
    can by themselves, instead of building metadata anew."""
    for group in chain.from_iterable(attn_groups):
        if group.backend.get_name() == "CPU_ATTN":
            builder = group.get_metadata_builder()
            builder.supports_draft_decode_metadata_update = True
            builder.update_draft_decode_metadata = lambda metadata, builder=builder: plan_again(builder, metadata)


def plan_again(builder, metadata) -> None:
    """Plan CPU attention for the lengths as they are now."""
    common = SimpleNamespace(**vars(metadata), num_reqs=len(metadata.seq_lens), block_table_tensor=metadata.block_table)
    metadata.scheduler_metadata = builder.build(0, common).scheduler_metadata


def query_scale(layer: Attention) -> float:
    """The softmax scale of a layer, for its queries as `observe_queries` shows them (quantised with fp8 keys)."""
    quantised = getattr(layer, "query_quant", None) is not None
    return layer.impl.scale * (layer._q_scale_float if quantised else 1.0)


class KeyFinder:
    """Finds where a layer's paged KV cache has its keys, whatever the backend's order inside a block.

    The order is found by writing every (token, channel) index as a key into the null block, which holds no request's
    tokens, and looking where it went.
    """

    BASE = 7  # digits 1..7: exact in every cache dtype, 8-bit floats included

    def __init__(self, layer: Attention):
        self.layer, self.cache = layer, self.stored(layer)  # [blocks, KV heads, block size, 2 * head size]
        self.block_size, self.head_size = self.cache.shape[2], self.cache.shape[3] // 2

    @staticmethod
    def stored(layer: Attention) -> Tensor:
        """The cache in the dtype of what is in it: vLLM keeps 8-bit floats as bytes."""
        kind = getattr(layer, "kv_cache_dtype", "auto")
        if layer.kv_cache.dtype != torch.uint8:
            return layer.kv_cache
        return layer.kv_cache.view(torch.float8_e5m2 if kind == "fp8_e5m2" else torch.float8_e4m3fn)

    def where(self) -> Tensor:
        """[block size * head size] place of each channel among what a head has in a block; -1 for one that is lost."""
        index = torch.arange(self.block_size * self.head_size, device=self.cache.device)
        order, base = torch.zeros(2 * len(index), dtype=torch.int64, device=self.cache.device), 1
        while base < len(index):
            order += (self._written(index // base % self.BASE + 1) - 1) * base
            base *= self.BASE
        where = torch.full_like(index, -1)
        where[order[order >= 0]] = (order >= 0).nonzero()[:, 0]
        return where

    def _written(self, values: Tensor) -> Tensor:
        """What the first head of the null block holds after `values` went in as keys and zeros as values."""
        layer, cache = self.layer, self.layer.kv_cache
        keys = (values * layer._k_scale_float).to(layer.dtype).view(self.block_size, 1, self.head_size)
        keys = keys.repeat(1, cache.shape[1], 1)
        slots = torch.arange(self.block_size, dtype=torch.int64, device=cache.device)
        layer.impl.do_kv_cache_update(layer, keys, torch.zeros_like(keys), cache, slots)
        seen = self.cache[0, 0].reshape(-1).float().round().long()
        cache[0].zero_()
        return seen


def find_keys(layers: list[Attention]) -> KeyCache:
    """Where the keys of all layers are. Raises ValueError where they cannot be found, or lie differently by layer."""
    finder = KeyFinder(layers[0])
    caches, where = [finder.stored(layer) for layer in layers], finder.where()
    if (where < 0).any() or len({(cache.shape[1:], cache.stride(), cache.dtype) for cache in caches}) > 1:
        kind = type(layers[0].impl).__name__
        raise ValueError(f"selection cannot read keys back from the KV cache of {kind}, the same in all layers.")
    (*_, token, channel), row = finder.cache.stride(), 2 * finder.head_size
    order = (where // row * token + where % row * channel).view(finder.block_size, finder.head_size)
    index = torch.arange(len(where), device=where.device)
    plain = channel == 1 and bool((where == index + index // finder.head_size * finder.head_size).all())
    quantised = finder.cache.dtype.itemsize == 1
    return KeyCache(caches, order, plain, [layer._k_scale_float if quantised else 1.0 for layer in layers])
