"""CUDA graphs of the target's dense pass: vLLM's own for plain steps, and a few for passes that verify drafts.

vLLM captures a uniform batch for each draft length at each of its capture sizes, which with five lengths are hundreds
of graphs. Where the attention backend replays batches of mixed query lengths, as vLLM's adaptive verification has them,
one graph by number of tokens serves every draft length, also where requests of a batch have different drafts.
"""

from collections.abc import Iterator
from itertools import chain
from typing import Any

from vllm.config.compilation import CUDAGraphMode
from vllm.v1.worker.gpu.attn_utils import get_varlen_cudagraph_unsupported_backend
from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor, CudaGraphManager, ModelCudaGraphManager

from vllm_std.patches.graph_batches import planned, token_counts, uniform_batch
from vllm_std.patches.wrapping import Patch

VERIFY_GRAPHS = Patch(
    name="verify graphs",
    replaces=(
        "ModelCudaGraphManager.__init__ and .capture (its batches: _capture_descs, _candidates); GPUModelRunner."
        "prepare_inputs (InputBatch.max_query_len); AttentionMetadataBuilder.max_cudagraph_size of FlashAttention"
    ),
    why=(
        "vLLM captures each draft length at each capture size, no passes of other lengths in one batch, and none above "
        "512 tokens"
    ),
    upstream="vLLM #32374",
    remove_when="graphs of mixed query lengths, as of adaptive verification, can be had by every method",
)

FULL = CUDAGraphMode.FULL


def init(original, self: ModelCudaGraphManager, *args, **kwargs) -> None:
    """ModelCudaGraphManager.__init__, before anybody knows what the attention backend can replay."""
    original(self, *args, **kwargs)
    if _of_std(self):
        choose(self, planned(self.vllm_config, mixed=False))


def capture(original, self: ModelCudaGraphManager, *args, **kwargs):
    """ModelCudaGraphManager.capture(model, model_state, input_buffers, intermediate_tensors, block_tables, attn_groups,
    kv_cache_config, ...)."""
    if _of_std(self):
        groups = args[5] if len(args) > 5 else kwargs["attn_groups"]
        if get_varlen_cudagraph_unsupported_backend(groups, self.vllm_config, self.decode_query_len) is None:
            choose(self, planned(self.vllm_config, mixed=True))
        _allow_splits(groups, self._capture_descs[FULL][0].num_tokens)
    return original(self, *args, **kwargs)


def _of_std(manager: ModelCudaGraphManager) -> bool:
    """Whether this is the target's, which std drafts for, and whole passes that decode are captured by themselves."""
    options, sizes = manager.vllm_config.speculative_config, manager.compilation_config.cudagraph_capture_sizes
    drafts = options is not None and options.method == "std" and manager.decode_query_len > 1
    return bool(drafts and sizes and captures_decoding(manager.cudagraph_mode) and manager.ubatch_runner is None)


def captures_decoding(mode: CUDAGraphMode) -> bool:
    """Whether there are graphs of whole passes for decoding alone."""
    return mode.decode_mode() == FULL and mode.separate_routine()


def thin(manager: CudaGraphManager, query_len: int) -> CudaGraphManager:
    """The same with fewer batch sizes of draft steps: of those that lie close together one, and the largest.

    query_len: tokens of each request in a draft step.
    """
    given = manager.compilation_config.cudagraph_capture_sizes
    if manager.cudagraph_mode and given:
        sizes = sorted({min(size, manager.max_num_reqs) for size in given})
        wanted = [count for count in (1, 2, *token_counts(sizes[-1])) if count <= sizes[-1]]
        kept = {next(size for size in sizes if size >= count) for count in wanted}
        choose(manager, [uniform_batch(size, query_len) for size in sorted(kept)])
    return manager


def choose(manager: CudaGraphManager, graphs: list[dict[str, Any]]) -> None:
    """Replace the batches that vLLM would capture as one graph, and those it looks for when it runs one."""
    cases = manager.lora_capture_cases
    chosen = [
        BatchExecutionDescriptor(cg_mode=FULL, num_active_loras=case, **graph) for case in cases for graph in graphs
    ]
    pieces = manager._capture_descs.get(CUDAGraphMode.PIECEWISE, [])
    manager._capture_descs[FULL] = sorted(chosen, key=lambda batch: batch.num_tokens, reverse=True)
    manager._candidates = {
        (tokens, case): list(_serving(tokens, case, chosen, pieces))
        for case in cases
        for tokens in range(max(batch.num_tokens for batch in (*chosen, *pieces)) + 1)
    }


def _serving(tokens: int, case: int, *kinds: list[BatchExecutionDescriptor]) -> Iterator[BatchExecutionDescriptor]:
    """Captured batches that so many tokens may be padded to, in the order in which they are preferred: the smallest of
    each query length, and vLLM's piecewise ones last."""
    for batches in kinds:
        smallest: dict[Any, BatchExecutionDescriptor] = {}
        for batch in sorted(batches, key=lambda batch: batch.num_tokens):
            if batch.num_tokens >= tokens and batch.num_active_loras == case:
                smallest.setdefault((batch.uniform_token_count, batch.max_query_len), batch)
        yield from smallest.values()


def _allow_splits(attn_groups, tokens: int) -> None:
    """FlashAttention's builders bound the number of splits, as a graph needs, for passes of at most so many tokens."""
    for group in chain.from_iterable(attn_groups):
        for builder in group.metadata_builders:
            if (most := getattr(builder, "max_cudagraph_size", None)) is not None:
                builder.max_cudagraph_size = max(most, tokens)


def prepare_inputs(original, self, scheduler_output, batch_req_state, batch_desc, *args, **kwargs):
    """GPUModelRunner.prepare_inputs: what attention plans for a graph of mixed query lengths is what was captured."""
    batch = original(self, scheduler_output, batch_req_state, batch_desc, *args, **kwargs)
    if batch_desc.max_query_len is not None:
        batch.max_query_len = batch_desc.max_query_len
    return batch
