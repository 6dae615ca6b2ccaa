"""One round of sparse-to-dense drafting, top to bottom (paper section 3; vLLM's TargetDependentARSpeculator).

begin     the token just sampled and its position, from what the target's dense pass and the sampler left behind
select    summarise the blocks that the pass completed; score the request's own blocks with its queries; keep the
          best K of each layer
draft     gamma times: the target itself, one token per request, over the masked block tables; its K/V go into the
          reserved slots of the request's own blocks, where the next dense pass writes the same positions again

`select` and one step of `draft` are a CUDA graph each, for every batch size that vLLM captures: a round replays the
first once and the second gamma times, so that any draft length up to gamma runs without another capture.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vllm_std.draft.setup import EAGER, FULL, TargetAsDraft
from vllm_std.patches import connector, failures, spec_decode
from vllm_std.patches.metadata import limit_length, mask_metadata, share_plan, windowed_metadata
from vllm_std.selection.batch import DensePass


class StdSpeculator(TargetAsDraft):
    """Drafts with the target model itself on its own KV cache."""

    @torch.inference_mode()
    def propose(self, input_batch, *args, dummy_run: bool = False, **kwargs) -> Tensor:
        """As `_round`; where that raises, its requests go on, with drafts that say nothing."""
        try:
            return self._round(input_batch, *args, dummy_run=dummy_run, **kwargs)  # type: ignore[misc]
        except Exception as error:
            if dummy_run or not failures.ranks_agree():  # else ranks would verify different drafts
                raise
            self.faults.note("round", error)
            return self._blank(input_batch)

    def _round(
        self,
        input_batch,
        attn_metadata: dict[str, Any],
        slot_mappings: dict[str, Tensor],
        last_hidden_states: Tensor,
        aux_hidden_states: list[Tensor] | None,
        num_sampled: Tensor,  # [reqs], 0 in the middle of a prompt
        num_rejected: Tensor,  # [reqs]
        last_sampled: Tensor,  # [max_num_reqs, 1]
        next_prefill_tokens: Tensor,
        temperature: Tensor,  # [max_num_reqs]
        seeds: Tensor,  # [max_num_reqs]
        dp_sync_state=None,
        dummy_run: bool = False,
        skip_attn_for_dummy_run: bool = False,
        mm_inputs=None,
        is_profile: bool = False,
        num_speculative_tokens: int | None = None,
    ) -> Tensor:
        """[reqs, gamma] drafted tokens, which vLLM's rejection sampler verifies in the next pass; -1 for none."""
        num_reqs, slots, tokens = input_batch.num_reqs, input_batch.idx_mapping_np, input_batch.num_scheduled_tokens
        gamma = self.gamma if num_speculative_tokens is None else num_speculative_tokens
        if gamma == 0 and not dummy_run and not input_batch.is_prefilling_np.any():
            return self._skip(num_reqs, slots, tokens)
        skip_attn = dummy_run and skip_attn_for_dummy_run
        bound = input_batch.seq_lens_cpu_upper_bound[:num_reqs]
        prefilling = input_batch.is_prefilling_np
        computed = input_batch.num_computed_tokens_np + tokens
        prompt_done = prefilling & (computed >= input_batch.prefill_len_np) & (not dummy_run)
        drafting = (~prefilling & (not dummy_run)) | prompt_done
        if not dummy_run and (gamma == 0 or prompt_done.any()):
            self.selector.skip_round(slots, tokens)
            self.selector.restart(slots[prompt_done], bound.numpy()[prompt_done])
        if gamma == 0 or not (drafting.any() or dummy_run or self.dp_size > 1):
            return self.no_drafts[:num_reqs]
        if self.unseen is not None:
            error, self.unseen = self.unseen, None
            raise error

        length = (input_batch.seq_lens[:num_reqs] - num_rejected[:num_reqs]).long()
        if drafting.any():
            dense_pass = self._dense_pass(input_batch, length, num_rejected[:num_reqs])
            has_queries = bool(tokens.max() > 1) or not self.asks
            self.selector.begin(dense_pass, slots, drafting, has_queries)
        elif not skip_attn:  # a dummy pass
            self.selector.batch.clear()
        self._copy_request_inputs(num_reqs, input_batch.idx_mapping, temperature, seeds, dummy_run=dummy_run)
        if self.truncation is not None:
            self.truncation.begin(slots)
        self._begin(input_batch, length, num_sampled, num_rejected, last_sampled)
        if is_profile:
            self._reserve_selection()
        batch_desc, across_dp = self._dispatch(num_reqs, dp_sync_state, eager=is_profile)
        if not skip_attn:  # else vLLM profiles its memory, and there is no KV cache yet
            self._select(num_reqs, batch_desc)
        self._draft(num_reqs, batch_desc, gamma, bound, across_dp, skip_attn)
        return self.draft_tokens[:num_reqs, 1:]

    def _skip(self, num_reqs: int, slots: np.ndarray, tokens: np.ndarray) -> Tensor:
        """[reqs, gamma] -1: a step of plain decoding, which should cost what it costs without std."""
        self.selector.skip_round(slots, tokens)
        return self.no_drafts[:num_reqs]

    def _blank(self, input_batch) -> Tensor:
        """[reqs, gamma] token 0, drawn with certainty so that verification is exact: the next step has places for them,
        and what the failed round has left half done is done again by the next one."""
        num_reqs, slots = input_batch.num_reqs, input_batch.idx_mapping_np
        with self.faults.caught("round"):
            length = input_batch.seq_lens_cpu_upper_bound[:num_reqs].numpy()
            self.selector.restart(slots, length)
        if self.draft_logits is not None:
            rows = input_batch.idx_mapping.long()
            self.draft_logits[rows] = torch.finfo(self.draft_logits.dtype).min
            self.draft_logits[rows, :, 0] = 0
        return self.draft_tokens[:num_reqs, 1:].zero_()

    def _dense_pass(self, input_batch, length: Tensor, num_rejected: Tensor) -> DensePass:
        """What the dense pass has left behind; length: [reqs] verified tokens."""
        num_reqs = len(length)
        self._find_keys()
        return DensePass(
            slots=input_batch.idx_mapping,
            queries=self.queries.kept[:, :num_reqs],
            last_query=self.queries.last_verified(input_batch.query_start_loc[: num_reqs + 1], num_rejected),
            context_lens=length,
            max_context_lens=input_batch.seq_lens_cpu_upper_bound[:num_reqs].numpy(),
            block_table=self._block_table()[:num_reqs],
            read_keys=self.selector.cache.read,
            mask=self.selector.mask,
            scales=self.scales,
        )

    def _begin(
        self, input_batch, length: Tensor, num_sampled: Tensor, num_rejected: Tensor, last_sampled: Tensor
    ) -> None:
        """Set up the inputs of the first draft step; length: [reqs] verified tokens."""
        num_reqs, slots = input_batch.num_reqs, input_batch.idx_mapping.long()
        # -1: vLLM's mark of a row that must not write or sample; here, one in the middle of its prompt.
        self.idx_mapping[:num_reqs].masked_fill_(num_sampled[:num_reqs] == 0, -1)
        self.draft_tokens[:num_reqs, 0] = last_sampled[slots].view(-1)
        self.input_buffers.positions[:num_reqs] = length - 1
        self.sample_src_positions[:num_reqs] = length - 1
        self.current_draft_step.zero_()
        if self.has_windows:
            self.true_lens.zero_()  # for rows that no request has
        spec_decode.prepare_decode_inputs(
            self.draft_tokens[:num_reqs, 0], input_batch.seq_lens, num_rejected, self.input_buffers,
            self.sample_src_positions, self.max_model_len, self.max_num_reqs,
        )  # fmt: skip
        rope_state = self.model_state.rope_state if hasattr(self, "model_state") else None
        if rope_state is not None:
            # The runner keeps the offset of text behind videos in alternating buffers, so a graph cannot read them.
            self.rope_offset[:num_reqs] = rope_state.prefill_delta.gpu[slots]

    def _dispatch(self, num_reqs: int, dp_sync_state, eager: bool):
        """The captured batch that this one is padded to, if any, and the tokens of each data-parallel rank."""
        sync, num_tokens = None, num_reqs
        if dp_sync_state is not None:
            sync, num_tokens = self._build_uniform_batch_dp_sync(dp_sync_state, num_reqs)
        batch_desc, sync = spec_decode.dispatch_cg_and_sync_dp(
            self.decode_cudagraph_manager, num_reqs, num_tokens, 1, self.dp_size, self.dp_rank,
            need_eager=eager, dp_sync_state=sync,
        )  # fmt: skip
        return batch_desc, sync.num_tokens_across_dp if sync is not None else None

    def _select(self, num_reqs: int, batch_desc) -> None:
        """Choose the blocks of this round."""
        if batch_desc.cg_mode == FULL:
            self.select_cudagraph_manager.run_fullgraph(batch_desc)
        else:  # in a dummy pass too, so that no row attends past the masked tables
            self._find_keys()
            self._fill(num_reqs)

    def _fill(self, num_reqs: int, *_, **__) -> None:
        self.selector.select(num_reqs, self.input_buffers.seq_lens)

    def _draft(self, num_reqs: int, batch_desc, gamma: int, bound: Tensor, across_dp, skip_attn: bool) -> None:
        """Run gamma steps; bound: [reqs] on the host, at most so long are requests before the first."""
        if not skip_attn:
            bound = bound.clamp(max=self.selector.mask.max_length)
            self.draft_max_seq_len = min(self.selector.mask.max_length + self.gamma, self.max_model_len)
        self.drafting = True
        try:
            self.adapters.map(np.ones(num_reqs, dtype=np.int64), padding=batch_desc.num_tokens - num_reqs)
            if batch_desc.cg_mode == FULL:
                self._map_windowed_tables()
                for _ in range(gamma):
                    self.decode_cudagraph_manager.run_fullgraph(batch_desc)
            else:
                self._draft_eagerly(num_reqs, batch_desc, gamma, bound, across_dp, skip_attn)
        finally:
            self.drafting = False

    def _draft_eagerly(self, num_reqs: int, batch_desc, gamma: int, bound: Tensor, across_dp, skip_attn: bool) -> None:
        metadata = slots = None
        if not skip_attn:
            metadata = self._build_uniform_attn_metadata(batch_desc, num_reqs, 1, bound, step=1)
            slots = self.block_tables.slot_mappings[:, : batch_desc.num_tokens]
            slots = spec_decode.build_slot_mappings_by_layer(slots, self.kv_cache_config)
            metadata = self._mask(metadata)
        with self._context(batch_desc.num_tokens, metadata, slots, across_dp, EAGER):
            for _ in range(gamma):
                self._step(num_reqs, batch_desc.num_tokens, metadata, slots)

    # ------------------------------------------------------------ one draft step

    def _captured_step(self, num_reqs: int, num_tokens: int, attn_metadata, slots, across_dp, cg_mode, **_) -> None:
        """One draft step, as vLLM captures it."""
        metadata = self._mask(attn_metadata)
        with self._context(num_tokens, metadata, slots, across_dp, cg_mode):
            self._step(num_reqs, num_tokens, metadata, slots)

    def _mask(self, attn_metadata: dict[str, Any]) -> dict[str, Any]:
        """Metadata of attention over the masks of this round, an object for each full layer; windowed layers attend to
        what they attend to in a dense pass."""
        masked = mask_metadata(attn_metadata, dict(zip(self.layers, self.selector.tables)))
        limit_length(masked, self.draft_max_seq_len, self.layer_list[0].num_kv_heads)
        return masked | windowed_metadata(attn_metadata, masked, self.true_lens, self.max_model_len)

    @contextmanager
    def _context(self, num_tokens: int, metadata, slots, across_dp, cg_mode) -> Iterator[None]:
        """What the model's layers look up while draft steps run."""
        of_the_batch = {"num_tokens": num_tokens, "num_tokens_across_dp": across_dp, "slot_mapping": slots}
        descriptor = {"cudagraph_runtime_mode": cg_mode, "batch_descriptor": spec_decode.BatchDescriptor(num_tokens)}
        forward = spec_decode.set_forward_context(metadata, self.vllm_config, **of_the_batch, **descriptor)
        with connector.connector_muted(), forward:
            yield

    def _step(self, num_reqs: int, num_tokens: int, metadata, slots) -> None:
        """Device work on persistent buffers alone, so that a CUDA graph holds it; num_tokens: requests, padded."""
        if metadata is not None:
            batch = self.idx_mapping[:num_reqs], self.input_buffers.query_start_loc[: num_reqs + 1]
            self.block_tables.compute_slot_mappings(*batch, self.input_buffers.positions[:num_reqs], num_tokens)
            self._update_true_lens(num_reqs)
            self._update_draft_decode_metadata(metadata, num_reqs)
            share_plan(self.attn_groups, metadata)
        self.current_draft_step.add_(1).clamp_(max=self.gamma)  # when graphs are captured, no round has begun
        self._generate_draft(num_reqs, num_tokens, metadata, slots, None, EAGER, self.gamma + 1)

    def _update_true_lens(self, num_reqs: int) -> None:
        """What windowed layers attend to: all up to the drafted token; of a row that does not draft next to nothing."""
        if self.has_windows:
            drafts, positions = self.idx_mapping[:num_reqs] >= 0, self.input_buffers.positions[:num_reqs]
            true = torch.where(drafts, positions + 1, self.input_buffers.seq_lens[:num_reqs])
            self.true_lens[:num_reqs].copy_(true)

    def _run_model(self, num_tokens: int, attn_metadata, slot_mappings, *_, **__) -> tuple[Tensor, Tensor]:
        """The target's forward, one token per request, as its runner calls it."""
        input_ids, embeds = self.input_buffers.input_ids[:num_tokens], None
        if self.inputs_embeds is not None:
            embeds = self.inputs_embeds[:num_tokens]
            embeds.copy_(self.model.embed_input_ids(input_ids))
            input_ids = input_ids if self.takes_raw_tokens else None
        hidden = self.model(
            input_ids=input_ids, positions=self._positions(num_tokens), intermediate_tensors=None, inputs_embeds=embeds
        )
        return hidden, hidden

    def _positions(self, num_tokens: int) -> Tensor:
        """[tokens], or [rope dimensions, tokens] with M-RoPE: text runs on at the request's own offset."""
        positions = self.input_buffers.positions[:num_tokens]
        if self.mrope_positions is None:
            return positions
        self.mrope_positions[:, :num_tokens] = positions + self.rope_offset[:num_tokens]
        return self.mrope_positions[:, :num_tokens]

    def compute_draft_logits(self, hidden_states: Tensor, spec_step_idx: int) -> Tensor:
        """[reqs, vocabulary], -inf for what a request's top-k, top-p and min-p leave out."""
        logits = super().compute_draft_logits(hidden_states, spec_step_idx)
        if self.truncation is None or not self.truncation.needed:
            return logits
        return self.truncation.apply(logits, self.idx_mapping[: len(logits)], self.temperature)

    def sample_draft(self, hidden, positions, idx_mapping, temperature, seeds, draft_step, *args, **kwargs) -> Tensor:
        # Draft logits are cached without a column for the token the target sampled.
        return super().sample_draft(hidden, positions, idx_mapping, temperature, seeds, draft_step - 1, *args, **kwargs)
