"""What draft steps use of vLLM's inside; `draft` imports it from here.

The names are those of vLLM's `v1/worker/gpu/spec_decode` and of what it imports itself.
"""

from vllm.config.compilation import CUDAGraphMode
from vllm.forward_context import BatchDescriptor, set_forward_context
from vllm.model_executor.models.interfaces import requires_raw_input_tokens
from vllm.v1.attention.backends.utils import PAD_SLOT_ID
from vllm.v1.worker.gpu.attn_utils import build_slot_mappings_by_layer
from vllm.v1.worker.gpu.dp_utils import dispatch_cg_and_sync_dp
from vllm.v1.worker.gpu.model_runner import GPUModelRunner
from vllm.v1.worker.gpu.spec_decode.target_dependent_ar.cudagraph_utils import SpeculatorCudaGraphManager
from vllm.v1.worker.gpu.spec_decode.target_dependent_ar.speculator import (
    TargetDependentARSpeculator,
    prepare_decode_inputs,
)

from vllm_std.patches.wrapping import Patch

__all__ = [
    "BatchDescriptor",
    "CUDAGraphMode",
    "GPUModelRunner",
    "PAD_SLOT_ID",
    "SpeculatorCudaGraphManager",
    "TargetDependentARSpeculator",
    "build_slot_mappings_by_layer",
    "dispatch_cg_and_sync_dp",
    "prepare_decode_inputs",
    "requires_raw_input_tokens",
    "set_forward_context",
]

DRAFT_GRAPHS = Patch(
    name="draft graphs",
    replaces="SpeculatorCudaGraphManager, and what a step needs of TargetDependentARSpeculator's multi-step decode",
    why=(
        "vLLM fuses all steps of one draft length into a graph, or rebuilds metadata on the host for each step; a "
        "graph of one step serves every draft length"
    ),
    upstream="vLLM #32374",
    remove_when="vLLM captures draft steps one by one with metadata updated in place",
)
