"""What a round of drafting is given, and what its steps run on."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from vllm_std.draft.state import DraftState
from vllm_std.selection.batch import DensePass


@dataclass
class RoundInputs:
    """The parameters of vLLM's TargetDependentARSpeculator.propose, in its order.

    input_batch: of the dense pass. num_sampled: [reqs] int32, 0 in the middle of a prompt; num_rejected: [reqs] int32.
    last_sampled, temperature, seeds: [max_num_reqs] by row of vLLM's request state. num_speculative_tokens: the draft
    length that the scheduler chose; None: gamma.
    """

    input_batch: Any
    attn_metadata: Any
    slot_mappings: Any
    last_hidden_states: Any
    aux_hidden_states: Any
    num_sampled: Tensor
    num_rejected: Tensor
    last_sampled: Tensor
    next_prefill_tokens: Any
    temperature: Tensor
    seeds: Tensor
    dp_sync_state: Any = None
    dummy_run: bool = False
    skip_attn_for_dummy_run: bool = False
    mm_inputs: Any = None
    is_profile: bool = False
    num_speculative_tokens: int | None = None

    @property
    def num_reqs(self) -> int:
        return self.input_batch.num_reqs

    @property
    def slots(self) -> np.ndarray:
        """[reqs] rows of vLLM's request state, on the host."""
        return self.input_batch.idx_mapping_np

    @property
    def tokens(self) -> np.ndarray:
        """[reqs] tokens of the dense pass."""
        return self.input_batch.num_scheduled_tokens

    @property
    def decodes_only(self) -> bool:
        """Whether the dense pass computed no prompt."""
        return not (self.dummy_run or self.input_batch.is_prefilling_np.any())

    @property
    def without_attention(self) -> bool:
        """Whether vLLM profiles its memory, before there is a KV cache."""
        return self.dummy_run and self.skip_attn_for_dummy_run

    @cached_property
    def prompt_done(self) -> np.ndarray:
        """[reqs] bool, whose prompt the dense pass has completed."""
        batch = self.input_batch
        computed = batch.num_computed_tokens_np + self.tokens
        return batch.is_prefilling_np & (computed >= batch.prefill_len_np) & (not self.dummy_run)

    @cached_property
    def drafting(self) -> np.ndarray:
        """[reqs] bool, who drafts."""
        return (~self.input_batch.is_prefilling_np & (not self.dummy_run)) | self.prompt_done

    @cached_property
    def context_lens(self) -> Tensor:
        """[reqs] int64 verified tokens, on the device."""
        return (self.input_batch.seq_lens[: self.num_reqs] - self.num_rejected[: self.num_reqs]).long()

    @property
    def max_context_lens(self) -> Tensor:
        """[reqs] upper bounds of them, on the host."""
        return self.input_batch.seq_lens_cpu_upper_bound[: self.num_reqs]


@dataclass
class StepBatch:
    """The batch of each draft step of a round, as many tokens of each request.

    num_tokens: of them, padded to what was captured. metadata: {layer name: attention metadata}, slots: {layer name:
    [num_tokens] slot mapping}, both None where attention is skipped. across_dp: tokens of each data-parallel rank.
    """

    num_reqs: int
    num_tokens: int
    metadata: dict[str, Any] | None
    slots: dict[str, Tensor] | None
    across_dp: Tensor | None


def dense_pass_of(std: DraftState, inputs: RoundInputs, block_table: Tensor) -> DensePass:
    """What selection reads of a dense pass; block_table: [max_num_reqs, blocks] int32."""
    batch, num_reqs = inputs.input_batch, inputs.num_reqs
    starts = batch.query_start_loc[: num_reqs + 1]
    return DensePass(
        slots=batch.idx_mapping,
        queries=std.queries.kept[:, :num_reqs],
        last_query=std.queries.last_verified(starts, inputs.num_rejected[:num_reqs]),
        context_lens=inputs.context_lens,
        max_context_lens=inputs.max_context_lens.numpy(),
        block_table=block_table[:num_reqs],
        read_keys=std.selector.cache.read,
        mask=std.selector.mask,
        scales=std.target.scales,
    )
