"""One round of sparse-to-dense drafting, top to bottom (paper section 3; vLLM's TargetDependentARSpeculator).

begin     the token just sampled and its position, from what the target's dense pass and the sampler left behind
select    summarise the blocks that the pass completed; score the request's own blocks with its queries; keep the
          best K of each layer
draft     gamma times: the target itself, one token per request, over the masked block tables; its K/V go into the
          reserved slots of the request's own blocks, where the next dense pass writes the same positions again
"""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from vllm_std.mask import MaskShape
from vllm_std.seams import worker
from vllm_std.selection import POLICIES, KeySummaries, Observation, QueryWindow, Selector
from vllm_std.selection.attention import peak_bytes
from vllm_std.selection.summaries import GRANULE, granule

logger = worker.init_logger("vllm.std")
EAGER = worker.CUDAGraphMode.NONE


class StdSpeculator(worker.TargetDependentARSpeculator):
    """Drafts with the target model itself on its own KV cache.

    vLLM's multi-step decode starts at step 1, after an Eagle-like prefill that std does not need; so column 0 of
    `draft_tokens` holds the token the target has just sampled, and drafts stand in columns 1..gamma.
    """

    def __init__(self, vllm_config, device: torch.device):
        super().__init__(vllm_config, device)
        self.gamma = self.num_speculative_steps
        self.draft_tokens = torch.zeros(self.max_num_reqs, self.gamma + 1, dtype=torch.int64, device=device)
        self.hidden_states = torch.zeros(self.max_num_reqs, self.hidden_size, dtype=self.dtype, device=device)
        self.mrope_positions: Tensor | None = None
        if vllm_config.model_config.uses_mrope:
            # As wide as the target's (RopeState.positions), because compiled code may have its stride built in.
            shape = (vllm_config.model_config.mrope_num_dims, self.max_num_tokens + 1)
            self.mrope_positions = torch.zeros(shape, dtype=torch.int64, device=device)
        self.drafting = False

    # ------------------------------------------------------------ start-up

    def load_draft_model(self, target_model, target_attn_layer_names: set[str]):
        return target_model

    def load_model(self, target_model) -> None:
        super().load_model(target_model)
        # Drafted tokens are text: the runner need not gather video embeddings for them. But a multimodal model is
        # compiled for embeddings instead of token ids.
        self.supports_mm_inputs = False
        model_config = self.vllm_config.model_config
        takes_embeds = model_config.supports_multimodal_inputs or model_config.enable_prompt_embeds
        self.inputs_embeds = torch.zeros_like(self.hidden_states) if takes_embeds else None
        self.layers = worker.attention_layers(self.vllm_config)
        self.layer_list = list(self.layers.values())
        self.scales = [worker.query_scale(layer) for layer in self.layer_list]
        self._keep_queries(needed=POLICIES[self.speculative_config.selection].needs_queries)

    def _keep_queries(self, needed: bool) -> None:
        """Allocate observation queries (before vLLM profiles its memory) and have each layer fill its part of them."""
        heads, size = self.layer_list[0].num_heads, self.layer_list[0].head_size
        rows = self.max_num_reqs if needed else 0
        shape = (len(self.layers), rows, self.gamma + 1, heads, size)
        self.queries = QueryWindow(shape, self.dtype, self.device)
        if not rows:
            return

        def see(index: int, query: Tensor, query_start_loc: Tensor) -> None:
            if not self.drafting:
                self.queries.see(index, query, query_start_loc)

        for index, layer in enumerate(self.layer_list):
            worker.observe_queries(layer, index, see)

    def set_attn(self, model_state, kv_cache_config, *args) -> None:
        worker.require_full_attention(self.vllm_config, self.layer_list, model_state, kv_cache_config)
        # Own metadata builders over the target's layers; to everyone else std has no layers of its own.
        self.draft_attn_layer_names = set(self.layers)
        super().set_attn(model_state, kv_cache_config, *args)
        self.draft_attn_layer_names = set()
        self.group = worker.only_group(self.attn_groups)
        spec = self.group.kv_cache_spec
        block_size, options = self.group.kernel_block_size or spec.block_size, self.speculative_config
        summaries, layer = None, self.layer_list[0]
        if POLICIES[options.selection].needs_summaries:
            blocks, granules = (
                kv_cache_config.num_blocks * spec.block_size // block_size,
                block_size // granule(block_size),
            )
            shape = (len(self.layers), blocks, layer.num_kv_heads, granules, layer.head_size)
            summaries = KeySummaries(shape, self.dtype, self.device)
        sizes = (block_size, self.gamma, len(self.layers), self.max_num_reqs)
        self.selector = Selector(options, *sizes, summaries, self.device)
        self._announce(options, self.selector.mask, summaries.means.nbytes if summaries else 0)

    def _announce(self, options, mask: MaskShape, summaries: int) -> None:
        budget = f"{options.top_k} tokens" if isinstance(options.top_k, int) else f"{options.top_k:.1%} of the context"
        logger.info_once(
            "std: the target drafts %d tokens a round over %s of its own KV cache, at most %d blocks of %d (sink %d, "
            "top-K %d, then a recent window of %d tokens), selection=%s, in all %d attention layers on %s; observation "
            "queries take %.1f MiB, key summaries %.1f MiB.",
            self.gamma, budget, mask.num_blocks, mask.block_size, mask.sink, mask.top, mask.recent, options.selection,
            len(self.layers), self.group.backend.get_name(), self.queries.kept.nbytes / 2**20, summaries / 2**20,
        )  # fmt: skip

    def init_cudagraph_manager(self, cudagraph_mode) -> None:
        super().init_cudagraph_manager(EAGER)

    def capture(self) -> None:
        """Nothing to capture: drafts run eagerly, and the target's graphs are the runner's."""

    def _configure_decode_metadata_update(self) -> None:
        # Metadata is rebuilt at each step; updating it in place belongs to graphs.
        self.supports_decode_metadata_update = False

    # ------------------------------------------------------------ the round

    @torch.inference_mode()
    def propose(
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
        num_reqs = input_batch.num_reqs
        gamma = self.gamma if num_speculative_tokens is None else num_speculative_tokens
        skip_attn = dummy_run and skip_attn_for_dummy_run
        length = (input_batch.seq_lens[:num_reqs] - num_rejected[:num_reqs]).long()
        seen = None if dummy_run else self._observe(input_batch, length, num_rejected[:num_reqs])
        drafting = seen is not None and seen.drafting.any()
        if drafting:
            self.selector.summarise(seen)
        if gamma == 0 or not (drafting or dummy_run or self.dp_size > 1):
            return self.draft_tokens[:num_reqs, 1:].fill_(-1)

        self._copy_request_inputs(num_reqs, input_batch.idx_mapping, temperature, seeds, dummy_run=dummy_run)
        self._begin(input_batch, length, num_sampled, num_rejected, last_sampled)
        bound = input_batch.seq_lens_cpu_upper_bound[:num_reqs]
        if is_profile:
            self._reserve_selection()
        if seen is not None:
            self.selector.select(seen)
        if not skip_attn:
            bound = self._shorten(length, bound)
        self._draft(num_reqs, gamma, bound, dp_sync_state, skip_attn, is_profile)
        return self.draft_tokens[:num_reqs, 1:]

    def _observe(self, input_batch, length: Tensor, num_rejected: Tensor) -> Observation:
        """What the dense pass has left behind; length: [reqs] verified tokens."""
        num_reqs, prefilling = len(length), input_batch.is_prefilling_np
        computed = input_batch.num_computed_tokens_np + input_batch.num_scheduled_tokens
        prompt_done = prefilling & (computed >= input_batch.prefill_len_np)
        table = self.block_tables.input_block_tables[self.group.kv_cache_group_id][:num_reqs]
        summaries = self.selector.summaries
        return Observation(
            queries=self.queries.kept[:, :num_reqs],
            num_queries=self.queries.count(input_batch.query_start_loc[: num_reqs + 1], num_rejected),
            length=length,
            max_length=input_batch.seq_lens_cpu_upper_bound[:num_reqs].numpy(),
            slots=input_batch.idx_mapping[:num_reqs].long(),
            slots_np=input_batch.idx_mapping_np,
            drafting=~prefilling | prompt_done,
            prompt_done=prompt_done,
            block_table=self.group.map_to_kernel_block_table(table),
            keys=self._read_keys,
            means=summaries.means if summaries else None,
            mask=self.selector.mask,
            scales=self.scales,
        )

    @cached_property
    def _key_reader(self) -> worker.KeyReader:
        return worker.KeyReader(self.layer_list[0])

    def _read_keys(self, layer: int, blocks: Tensor) -> Tensor:
        return self._key_reader(self.layer_list[layer], blocks)

    def _begin(
        self, input_batch, length: Tensor, num_sampled: Tensor, num_rejected: Tensor, last_sampled: Tensor
    ) -> None:
        """Set up the inputs of the first draft step; length: [reqs] verified tokens."""
        num_reqs = input_batch.num_reqs
        # -1: vLLM's mark of a row that must not write or sample; here, one in the middle of its prompt.
        self.idx_mapping[:num_reqs].masked_fill_(num_sampled[:num_reqs] == 0, -1)
        self.draft_tokens[:num_reqs, 0] = last_sampled[input_batch.idx_mapping[:num_reqs]].view(-1)
        self.input_buffers.positions[:num_reqs] = length - 1
        self.sample_src_positions[:num_reqs] = length - 1
        worker.prepare_decode_inputs(
            self.draft_tokens[:num_reqs, 0], input_batch.seq_lens, num_rejected, self.input_buffers,
            self.sample_src_positions, self.max_model_len, self.max_num_reqs,
        )  # fmt: skip

    def _reserve_selection(self) -> None:
        """Let vLLM's memory profile see what selection takes at most."""
        if self.queries.kept.numel():
            layer, mask = self.layer_list[0], self.speculative_config.mask_shape(GRANULE)
            sizes = (layer.num_heads, layer.num_kv_heads, layer.head_size, self.dtype.itemsize)
            peak = peak_bytes(mask, self.max_num_reqs, self.max_model_len, self.gamma + 1, *sizes)
            torch.empty(peak, dtype=torch.uint8, device=self.device)

    def _shorten(self, length: Tensor, bound: Tensor) -> Tensor:
        """From here on a request is as long as its mask; only positions and slots know where it really is."""
        self.input_buffers.seq_lens[: len(length)] -= self.selector.dropped_tokens(length)
        return bound.clamp(max=self.selector.mask.max_length)

    def _draft(self, num_reqs: int, gamma: int, bound: Tensor, dp_sync_state, skip_attn: bool, eager: bool) -> None:
        """Run vLLM's multi-step decode; bound: [reqs] on the host, masked lengths before the first draft step."""
        self.draft_max_seq_len = min(int(bound.max()) + gamma, self.max_model_len)
        sync, num_tokens = None, num_reqs
        if dp_sync_state is not None:
            sync, num_tokens = self._build_uniform_batch_dp_sync(dp_sync_state, num_reqs)
        batch_desc, sync = worker.dispatch_cg_and_sync_dp(
            self.decode_cudagraph_manager, num_reqs, num_tokens, 1, self.dp_size, self.dp_rank,
            need_eager=eager, dp_sync_state=sync,
        )  # fmt: skip
        across_dp = sync.num_tokens_across_dp if sync is not None else None
        self.drafting = True
        try:
            self._multi_step_decode(num_reqs, skip_attn, batch_desc, across_dp, bound, gamma + 1)
        finally:
            self.drafting = False

    # ------------------------------------------------------------ one draft step, called by _multi_step_decode

    def _build_attn_metadata(self, *args, **kwargs) -> dict[str, Any]:
        metadata = super()._build_attn_metadata(*args, **kwargs)
        return worker.mask_metadata(metadata, dict(zip(self.layers, self.selector.tables)))

    def _run_model(
        self, num_tokens: int, attn_metadata, slot_mappings, num_tokens_across_dp, cudagraph_runtime_mode=EAGER, **_
    ) -> tuple[Tensor, Tensor]:
        """The target's forward, one token per request, as its runner calls it."""
        with worker.set_forward_context(
            attn_metadata,
            self.vllm_config,
            num_tokens=num_tokens,
            cudagraph_runtime_mode=cudagraph_runtime_mode,
            num_tokens_across_dp=num_tokens_across_dp,
            slot_mapping=slot_mappings,
            batch_descriptor=worker.BatchDescriptor(num_tokens=num_tokens),
        ):
            input_ids, embeds = self.input_buffers.input_ids[:num_tokens], None
            if self.inputs_embeds is not None:
                embeds = self.inputs_embeds[:num_tokens]
                embeds.copy_(self.model.embed_input_ids(input_ids))
                input_ids = input_ids if worker.requires_raw_input_tokens(self.model) else None
            hidden = self.model(
                input_ids=input_ids,
                positions=self._positions(num_tokens),
                intermediate_tensors=None,
                inputs_embeds=embeds,
            )
        return hidden, hidden

    def _positions(self, num_tokens: int) -> Tensor:
        """[tokens], or [rope dimensions, tokens] with M-RoPE: text runs on at the request's own offset."""
        positions = self.input_buffers.positions[:num_tokens]
        if self.mrope_positions is None:
            return positions
        rope_state = self.model_state.rope_state if hasattr(self, "model_state") else None
        if rope_state is not None:
            positions = positions + rope_state.prefill_delta.gpu[self.idx_mapping[:num_tokens].clamp(min=0)]
        self.mrope_positions[:, :num_tokens] = positions
        return self.mrope_positions[:, :num_tokens]

    def sample_draft(self, hidden, positions, idx_mapping, temperature, seeds, draft_step, *args, **kwargs) -> Tensor:
        # Draft logits are cached without a column for the token the target sampled.
        return super().sample_draft(hidden, positions, idx_mapping, temperature, seeds, draft_step - 1, *args, **kwargs)
