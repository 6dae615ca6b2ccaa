"""One draft step: the target over the masked block tables, and a sample after each of its tokens."""

from typing import Any

from torch import Tensor

from vllm_std.draft.inputs import StepBatch
from vllm_std.draft.setup import DraftSetup
from vllm_std.patches.metadata import share_plan
from vllm_std.patches.spec_decode import CUDAGraphMode
from vllm_std.proposals.passes import DraftPasses

EAGER = CUDAGraphMode.NONE


class DraftSteps(DraftSetup):
    """Runs the draft steps of `StdSpeculator`, with or without proposals."""

    def _step(self, batch: StepBatch) -> None:
        """One draft step: device work on persistent buffers alone, so that a CUDA graph holds it."""
        num_reqs, gamma, passes = batch.num_reqs, self.std.gamma, self.std.passes
        if passes is not None:
            passes.prepare(num_reqs)
        if batch.metadata is not None:
            self._update_metadata(batch, batch.metadata)
        if passes is not None:
            return self._sample_pass(batch, passes)
        self.current_draft_step.add_(1).clamp_(max=gamma)  # when graphs are captured, no round has begun
        self._generate_draft(num_reqs, batch.num_tokens, batch.metadata, batch.slots, None, EAGER, gamma + 1)

    def _update_metadata(self, batch: StepBatch, metadata: dict[str, Any]) -> None:
        """Slots and lengths of the step's tokens."""
        num_reqs, query_len = batch.num_reqs, self.std.buffers.query_len
        idx_mapping = self.idx_mapping[:num_reqs]
        positions = self.input_buffers.positions[: num_reqs * query_len]
        starts = self.input_buffers.query_start_loc[: num_reqs + 1]
        self.block_tables.compute_slot_mappings(idx_mapping, starts, positions, batch.num_tokens)
        if self.std.passes is not None:
            self.std.passes.leave_out(self.block_tables.slot_mappings, num_reqs)
        last = positions[query_len - 1 :: query_len]
        self.std.buffers.update_true_lens(idx_mapping, last, self.input_buffers.seq_lens[:num_reqs])
        self._update_draft_decode_metadata(metadata, num_reqs)
        share_plan(self.attn_groups, metadata)

    def _sample_pass(self, batch: StepBatch, passes: DraftPasses) -> None:
        """Sample after each token of a pass; drafts are the samples up to the first that was not proposed."""
        num_tokens = batch.num_reqs * passes.query_len
        self._prepare_eplb_forward(num_tokens)
        hidden, _ = self._run_model(batch.num_tokens, batch.metadata, batch.slots)
        sampled = self.sample_draft(
            hidden[:num_tokens], passes.sample_positions[:num_tokens], passes.sample_rows[:num_tokens],
            self.temperature, self.seeds, passes.steps[:num_tokens], self.draft_logits,
        )  # fmt: skip
        passes.accept(sampled, batch.num_reqs)

    def _run_model(self, num_tokens: int, attn_metadata, slot_mappings, *_, **__) -> tuple[Tensor, Tensor]:
        """The hidden states of the target, twice: vLLM asks for those to sample from and those of the next step."""
        positions = self.std.buffers.rope_positions(self.input_buffers.positions[:num_tokens])
        hidden = self.std.target.forward(self.input_buffers.input_ids[:num_tokens], positions)
        return hidden, hidden

    def compute_draft_logits(self, hidden_states: Tensor, spec_step_idx: int) -> Tensor:
        """[tokens, vocabulary], -inf for what a request's top-k, top-p and min-p leave out."""
        logits = super().compute_draft_logits(hidden_states, spec_step_idx)
        truncation = self.std.truncation
        if truncation is None or not truncation.needed:
            return logits
        rows = self.idx_mapping if self.std.passes is None else self.std.passes.sample_rows
        return truncation.apply(logits, rows[: len(logits)], self.temperature)

    def sample_draft(self, hidden, positions, idx_mapping, temperature, seeds, draft_step, *args, **kwargs) -> Tensor:
        """As vLLM's: column 0 of its cached draft logits is the first draft's."""
        return super().sample_draft(hidden, positions, idx_mapping, temperature, seeds, draft_step - 1, *args, **kwargs)
