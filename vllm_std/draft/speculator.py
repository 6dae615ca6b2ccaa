"""The path of a draft token, top to bottom (paper section 3; vLLM's TargetDependentARSpeculator).

select    the blocks that the dense pass completed are summarised, the request's own blocks are scored with its queries,
          and the best K of each layer are kept
begin     the token just sampled and its position are the inputs of the first draft step
draft     the target itself over the masked block tables, one token per request, or with `proposals` that token and what
          an n-gram lookup proposes after it; its K/V are written to the slots that are reserved for the request, where
          the next dense pass writes the same positions again

Selection and one draft step (`draft.steps`) are a CUDA graph each (`draft.graphs`).
"""

import numpy as np
import torch
from torch import Tensor

from vllm_std.draft.graphs import FULL, DraftGraphs
from vllm_std.draft.inputs import RoundInputs, StepBatch, dense_pass_of
from vllm_std.draft.metadata import eager_batch, map_windowed_tables, step_context
from vllm_std.draft.placeholders import placeholders
from vllm_std.draft.steps import EAGER
from vllm_std.patches.failures import ranks_agree
from vllm_std.patches.spec_decode import prepare_decode_inputs
from vllm_std.steps import leaves_queries


class StdSpeculator(DraftGraphs):
    """Drafts with the target model itself on its own KV cache."""

    @torch.inference_mode()
    def propose(self, *args, **kwargs) -> Tensor:
        """[reqs, gamma] int64 drafts, which vLLM's rejection sampler verifies in the next dense pass; -1 for none.

        The parameters are those of `RoundInputs`. A round that fails ends no request: the next step accepts no drafts.
        """
        inputs = RoundInputs(*args, **kwargs)
        try:
            return self._round(inputs)
        except Exception as error:
            if inputs.dummy_run or not ranks_agree():  # else ranks would verify different drafts
                raise
            self.std.faults.note("round", error)
            return placeholders(self, inputs)

    def _round(self, inputs: RoundInputs) -> Tensor:
        std = self.std
        length = std.gamma if inputs.num_speculative_tokens is None else inputs.num_speculative_tokens
        no_drafts = std.buffers.no_drafts[: inputs.num_reqs]
        if length == 0 and inputs.decodes_only:  # plain decoding, which should cost what it costs without std
            std.selector.skip_round(inputs.slots, inputs.tokens)
            return no_drafts
        if not inputs.dummy_run and (length == 0 or inputs.prompt_done.any()):
            std.selector.skip_round(inputs.slots, inputs.tokens)
            std.selector.restart(inputs.slots[inputs.prompt_done], inputs.max_context_lens.numpy()[inputs.prompt_done])
        if length == 0 or not (inputs.drafting.any() or inputs.dummy_run or self.dp_size > 1):
            return no_drafts
        std.raise_query_error()
        self._begin(inputs, length)
        if inputs.is_profile:
            std.reserve_scores(self.max_model_len, self.max_num_reqs)
        batch_desc, across_dp = self._dispatch(inputs)
        if not inputs.without_attention:
            self._select(inputs, batch_desc)
        self._draft(inputs, length, batch_desc, across_dp)
        return self.draft_tokens[: inputs.num_reqs, 1:]

    def _begin(self, inputs: RoundInputs, length: int) -> None:
        """Set up the inputs of the first draft step."""
        std, num_reqs, idx_mapping = self.std, inputs.num_reqs, inputs.input_batch.idx_mapping
        self._copy_request_inputs(num_reqs, idx_mapping, inputs.temperature, inputs.seeds, dummy_run=inputs.dummy_run)
        if std.truncation is not None:
            std.truncation.begin(inputs.slots)
        # -1: vLLM's mark of a row that must not write or sample; here, one in the middle of its prompt.
        self.idx_mapping[:num_reqs].masked_fill_(inputs.num_sampled[:num_reqs] == 0, -1)
        self.draft_tokens[:num_reqs, 0] = inputs.last_sampled[idx_mapping.long()].view(-1)
        self.input_buffers.positions[:num_reqs] = inputs.context_lens - 1
        self.sample_src_positions[:num_reqs] = inputs.context_lens - 1
        self.current_draft_step.zero_()
        prepare_decode_inputs(
            self.draft_tokens[:num_reqs, 0], inputs.input_batch.seq_lens, inputs.num_rejected, self.input_buffers,
            self.sample_src_positions, self.max_model_len, self.max_num_reqs,
        )  # fmt: skip
        rope_state = self.model_state.rope_state if hasattr(self, "model_state") else None
        std.buffers.begin(rope_state, idx_mapping.long())
        if std.passes is not None:
            std.passes.begin(inputs.context_lens, length)

    def _select(self, inputs: RoundInputs, batch_desc) -> None:
        """Choose the blocks of this round; in a dummy run too, so that no row attends past the masked tables."""
        self.std.find_keys()
        if inputs.drafting.any():
            has_queries = not self.std.policy.needs_queries or leaves_queries(int(inputs.tokens.max()))
            dense_pass = dense_pass_of(self.std, inputs, self._block_table())
            self.std.selector.begin(dense_pass, inputs.slots, inputs.drafting, has_queries)
        else:
            self.std.selector.batch.clear()
        if batch_desc.cg_mode == FULL:
            self.std.select_graphs.run_fullgraph(batch_desc)
        else:
            self._run_selection(inputs.num_reqs)

    def _draft(self, inputs: RoundInputs, length: int, batch_desc, across_dp) -> None:
        """Run the draft steps of a round of `length` drafts."""
        std, num_reqs = self.std, inputs.num_reqs
        if not inputs.without_attention:
            self.draft_max_seq_len = self._max_masked_len()
        steps = std.num_steps(length)
        std.drafting = True
        try:
            tokens = np.full(num_reqs, std.buffers.query_len, dtype=np.int64)
            std.target.adapters.map(tokens, padding=batch_desc.num_tokens - int(tokens.sum()))
            if batch_desc.cg_mode == FULL:
                map_windowed_tables(self)
                for _ in range(steps):
                    self.decode_cudagraph_manager.run_fullgraph(batch_desc)
            else:
                max_context_lens = None if inputs.without_attention else inputs.max_context_lens
                self._draft_eagerly(eager_batch(self, num_reqs, batch_desc, max_context_lens, across_dp), steps)
        finally:
            std.drafting = False
        if std.passes is not None:
            if steps < length:
                std.passes.fill(num_reqs, self.draft_logits)
            std.passes.count()

    def _draft_eagerly(self, batch: StepBatch, steps: int) -> None:
        with step_context(self, batch, EAGER):
            for _ in range(steps):
                self._step(batch)
