"""CUDA graphs of a round: selection is one, a draft step another, each for every batch size that vLLM captures.

A round replays the first once and the second for each draft step, so that every draft length runs on the same graphs.
"""

from typing import Any

from torch import Tensor

from vllm_std.draft.inputs import RoundInputs, StepBatch
from vllm_std.draft.metadata import masked_metadata, step_context
from vllm_std.draft.steps import EAGER, DraftSteps
from vllm_std.faults import logger
from vllm_std.patches.graphs import thin
from vllm_std.patches.spec_decode import CUDAGraphMode, SpeculatorCudaGraphManager, dispatch_cg_and_sync_dp

FULL = CUDAGraphMode.FULL


class DraftGraphs(DraftSteps):
    """Captures what `StdSpeculator` runs."""

    def init_cudagraph_manager(self, cudagraph_mode) -> None:
        reason = None
        if self.vllm_config.lora_config is not None:  # which adapters a draft step needs is set up on the host
            reason = "LoRA"
        elif cudagraph_mode.decode_mode() != FULL:
            reason = f"cudagraph_mode={cudagraph_mode.name}"
        if reason is not None and cudagraph_mode != EAGER:
            logger.warning_once("std: draft steps run without CUDA graphs because of %s, so each takes longer.", reason)
        mode = CUDAGraphMode.FULL_DECODE_ONLY if reason is None else EAGER
        self.std.select_graphs = self._graphs(mode)
        self.decode_cudagraph_manager = self._graphs(mode)

    def _graphs(self, mode: CUDAGraphMode) -> SpeculatorCudaGraphManager:
        query_len = self.std.buffers.query_len
        return thin(SpeculatorCudaGraphManager(self.vllm_config, self.device, mode, query_len), query_len)

    def capture(self) -> None:
        """Capture selection and one draft step for each batch size. Rows without a request do nothing in either."""
        std = self.std
        self.idx_mapping.fill_(-1)
        std.selector.batch.clear()
        std.find_keys()
        self.draft_max_seq_len = self._max_masked_len()
        if std.truncation is not None:
            # A graph serves requests that leave something out as well; what vLLM has for CPUs cannot be captured.
            std.truncation.needed = self.device.type != "cpu"
        buffers = (self.model_state, self.input_buffers, self.block_tables, self.attn_groups, self.kv_cache_config)
        std.drafting = True
        try:
            std.select_graphs.capture(self._run_selection, *buffers, progress_bar_desc="Capturing selection")
            self.decode_cudagraph_manager.capture(self._run_step, *buffers, progress_bar_desc="Capturing draft steps")
        finally:
            std.drafting = False
        if self._profiling(self.kv_cache_config):  # the small KV cache must be free again for the real one
            del std.selector

    def _max_masked_len(self) -> int:
        """Most tokens that a draft step attends to in a full layer."""
        options = self.std.options
        return min(self.std.selector.mask.max_length + options.most_lookahead, self.max_model_len + options.proposals)

    def _run_selection(self, num_reqs: int, *_, **__) -> None:
        """Selection, as vLLM captures it."""
        self.std.selector.select(num_reqs, self.input_buffers.seq_lens)
        if self.std.passes is not None:
            self.std.passes.masked_lens.copy_(self.input_buffers.seq_lens)

    def _run_step(self, num_reqs: int, num_tokens: int, attn_metadata, slots, across_dp, mode, **_) -> None:
        """One draft step, as vLLM captures it."""
        batch = StepBatch(num_reqs, num_tokens, masked_metadata(self, attn_metadata), slots, across_dp)
        with step_context(self, batch, mode):
            self._step(batch)

    def _dispatch(self, inputs: RoundInputs) -> tuple[Any, Tensor | None]:
        """(the captured batch that this one is padded to, if any; the tokens of each data-parallel rank)"""
        query_len, sync = self.std.buffers.query_len, None
        num_tokens = inputs.num_reqs * query_len
        if inputs.dp_sync_state is not None:
            sync, num_tokens = self._build_uniform_batch_dp_sync(inputs.dp_sync_state, inputs.num_reqs, query_len)
        batch_desc, sync = dispatch_cg_and_sync_dp(
            self.decode_cudagraph_manager, inputs.num_reqs, num_tokens, query_len, self.dp_size, self.dp_rank,
            need_eager=inputs.is_profile, dp_sync_state=sync,
        )  # fmt: skip
        return batch_desc, sync.num_tokens_across_dp if sync is not None else None
