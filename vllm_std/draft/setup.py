"""The target as its own draft model: all that a speculator of vLLM prepares before the first round."""

from itertools import chain
from typing import Any

import torch
from torch import Tensor

from vllm_std import advice
from vllm_std.faults import Faults, logger
from vllm_std.patches import adapters, graphs, groups, key_layout, metadata, queries, spec_decode
from vllm_std.selection.attention import peak_bytes
from vllm_std.selection.batch import BatchBuffers
from vllm_std.selection.policies import POLICIES
from vllm_std.selection.queries import QueryWindow
from vllm_std.selection.reads import GRANULE, granule
from vllm_std.selection.selector import Selector
from vllm_std.selection.summaries import KeySummaries
from vllm_std.selection.workspace import selection_bytes

EAGER, FULL = spec_decode.CUDAGraphMode.NONE, spec_decode.CUDAGraphMode.FULL


class TargetAsDraft(spec_decode.TargetDependentARSpeculator):
    """Buffers, attention groups and CUDA graphs of the draft loop; `StdSpeculator` runs it.

    vLLM's multi-step decode starts at step 1, after an Eagle-like prefill that std does not need; so column 0 of
    `draft_tokens` holds the token the target has just sampled, and drafts stand in columns 1..gamma.
    """

    def __init__(self, vllm_config, device: torch.device):
        super().__init__(vllm_config, device)
        self.gamma = self.num_speculative_steps
        self.draft_tokens = torch.zeros(self.max_num_reqs, self.gamma + 1, dtype=torch.int64, device=device)
        self.no_drafts = torch.full_like(self.draft_tokens[:, 1:], -1)
        self.hidden_states = torch.zeros(self.max_num_reqs, self.hidden_size, dtype=self.dtype, device=device)
        self.mrope_positions: Tensor | None = None
        if vllm_config.model_config.uses_mrope:
            # As wide as the target's (RopeState.positions), because compiled code may have its stride built in.
            shape = (vllm_config.model_config.mrope_num_dims, self.max_num_tokens + 1)
            self.mrope_positions = torch.zeros(shape, dtype=torch.int64, device=device)
        self.rope_offset = torch.zeros(self.max_num_reqs, dtype=torch.int64, device=device)
        self.true_lens = torch.zeros(self.max_num_reqs, dtype=torch.int32, device=device)  # of windowed layers
        self.drafting, self.has_windows, self.faults = False, False, Faults()
        self.truncation: Any = None  # `patches.truncation.Truncation`, once the runner has a sampler
        self.unseen: Exception | None = None  # what kept a layer's queries from being seen

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
        self.takes_raw_tokens = spec_decode.requires_raw_input_tokens(target_model)
        self.adapters = adapters.Adapters(target_model)
        self.layers = groups.full_layers(self.vllm_config)  # which drafts mask; others attend to a sliding window
        if not self.layers:
            groups.require_masked_attention(self.vllm_config, None)
        self.layer_list = list(self.layers.values())
        self.scales = [queries.query_scale(layer) for layer in self.layer_list]
        self.asks = self.speculative_config.needs_queries
        self._keep_queries()

    def _keep_queries(self) -> None:
        """Allocate observation queries (before vLLM profiles its memory) and have each layer fill its part of them."""
        heads, size = self.layer_list[0].num_heads, self.layer_list[0].head_size
        rows = self.max_num_reqs if self.asks else 0
        shape = (len(self.layers), rows, self.gamma + 1, heads, size)
        self.queries = QueryWindow(shape, self.dtype, self.device)
        if not rows:
            return

        def see(index: int, query: Tensor, query_start_loc: Tensor) -> None:
            if self.drafting:
                return
            try:
                self.queries.capture(index, query, query_start_loc)
            except Exception as error:  # the target's own pass must not fail for it
                self.unseen = error

        for index, layer in enumerate(self.layer_list):
            queries.observe_queries(layer, index, see)

    def set_attn(self, model_state, kv_cache_config, *args) -> None:
        groups.require_masked_attention(self.vllm_config, model_state)
        super().set_attn(model_state, kv_cache_config, *args)  # to everyone else std has no layers of its own
        # Own metadata builders over the target's layers.
        made = groups.draft_groups(self.vllm_config, kv_cache_config, self.device, set(self.layers))
        self.attn_groups, self.group = made
        self.has_windows = sum(map(len, self.attn_groups)) > 1
        self._configure_decode_metadata_update()
        groups.require_backends(self.attn_groups)
        spec, options, layer = self.group.kv_cache_spec, self.speculative_config, self.layer_list[0]
        block_size, summaries = self.group.kernel_block_size or spec.block_size, None
        if POLICIES[options.selection].needs_summaries:
            blocks = kv_cache_config.num_blocks * spec.block_size // block_size
            granules = block_size // granule(block_size)
            shape = (len(self.layers), blocks, layer.num_kv_heads, granules, layer.head_size)
            summaries = KeySummaries(shape, self.dtype, self.device)
        batch, policy = BatchBuffers(self._block_table()), POLICIES[options.selection]
        self.selector = Selector(policy, options, block_size, batch, self.queries, self.scales, summaries)
        self.profiling = self.vllm_config.cache_config.num_gpu_blocks != kv_cache_config.num_blocks
        if not self.profiling:
            self._announce(sum(tensor.size for tensor in kv_cache_config.kv_cache_tensors))

    def _block_table(self) -> Tensor:
        """[max_num_reqs, blocks] int32, always at the same address."""
        table = self.block_tables.input_block_tables[self.group.kv_cache_group_id]
        return self.group.map_to_kernel_block_table(table)

    def _map_windowed_tables(self) -> None:
        """Graphs read the tables of kernel blocks, where a backend has smaller blocks than the KV cache manager."""
        for group in (group for group in chain.from_iterable(self.attn_groups) if group is not self.group):
            group.map_to_kernel_block_table(self.block_tables.input_block_tables[group.kv_cache_group_id])

    def _announce(self, kv_bytes: int) -> None:
        options, mask, heads = self.speculative_config, self.selector.mask, self.layer_list[0].num_heads
        full, layers = len(self.layers), len(groups.attention_layers(self.vllm_config))
        others = selection_bytes(options, mask.block_size, full, self.max_num_reqs, heads)
        budget = f"{options.top_k} tokens" if isinstance(options.top_k, int) else f"{options.top_k:.1%} of the context"
        queries = self.queries.kept.nbytes
        summaries = self.selector.summaries.means.nbytes if self.selector.summaries else 0
        taken = queries + summaries + others
        logger.info_once(
            "std: the target drafts %s%d tokens a round over %s of its own KV cache, at most %d blocks of %d (sink %d, "
            "top-K %d, then a recent window of %d tokens), selection=%s, in %s attention layers on %s. Room for "
            "KV is %.1f %% less than without: key summaries take %.1f MiB, observation queries %.1f, selection %.1f.",
            "up to " if options.adaptive else "", self.gamma, budget, mask.num_blocks, mask.block_size, mask.sink,
            mask.top, mask.recent, options.selection,
            f"all {full}" if full == layers else f"{full} of {layers}", self.group.backend.get_name(),
            100 * taken / (taken + kv_bytes), summaries / 2**20,
            queries / 2**20, others / 2**20,
        )  # fmt: skip
        self._advise((queries + others) // self.max_num_reqs)

    def _advise(self, bytes_each: int) -> None:
        """Say what costs speed; bytes_each: that std keeps for each of max_num_seqs requests."""
        cache, mask = self.vllm_config.cache_config, self.selector.mask
        costs = [
            *advice.machine_advice(self.device.type),
            *advice.mask_advice(self.speculative_config, mask.block_size),
            *advice.batch_advice(self.max_num_reqs, cache.num_gpu_blocks * cache.block_size, mask, bytes_each),
        ]
        if costs:
            logger.warning_once("std: it could be faster here. %s", " ".join(costs))

    def _configure_decode_metadata_update(self) -> None:
        # Its own first step is a decode step too, so this holds for gamma 1 as well.
        metadata.plan_on_cpu(self.attn_groups)
        super(spec_decode.TargetDependentARSpeculator, self)._configure_decode_metadata_update()

    def init_cudagraph_manager(self, cudagraph_mode) -> None:
        reason = None if cudagraph_mode.decode_mode() == FULL else f"cudagraph_mode={cudagraph_mode.name}"
        if self.vllm_config.lora_config is not None:  # which adapters a draft step needs is set up on the host
            reason = "LoRA"
        full = reason is None
        if not full and cudagraph_mode != EAGER:
            logger.warning_once("std: draft steps run without CUDA graphs because of %s, so each takes longer.", reason)
        mode = spec_decode.CUDAGraphMode.FULL_DECODE_ONLY if full else EAGER
        managers = (spec_decode.SpeculatorCudaGraphManager(self.vllm_config, self.device, mode, 1) for _ in range(2))
        self.select_cudagraph_manager, self.decode_cudagraph_manager = map(graphs.thin, managers)

    def capture(self) -> None:
        """Capture selection and one draft step for each batch size. Rows without a request do nothing in either."""
        self.idx_mapping.fill_(-1)
        self.selector.batch.clear()
        self._find_keys()
        self.draft_max_seq_len = min(self.selector.mask.max_length + self.gamma, self.max_model_len)
        of = (self.model_state, self.input_buffers, self.block_tables, self.attn_groups, self.kv_cache_config)
        self.drafting = True
        if self.truncation is not None:
            # A graph serves requests that leave something out as well; what vLLM has for CPUs cannot be captured.
            self.truncation.needed = self.device.type != "cpu"
        try:
            self.select_cudagraph_manager.capture(self._fill, *of, progress_bar_desc="Capturing selection")
            self.decode_cudagraph_manager.capture(self._captured_step, *of, progress_bar_desc="Capturing draft steps")
        finally:
            self.drafting = False
        if self.profiling:  # vLLM measures graphs on a small KV cache, which must be free again for the real one
            del self.selector

    def _find_keys(self) -> None:
        """Look into the KV cache, which vLLM allocates after `set_attn`."""
        if self.selector.cache is None:
            self.selector.cache = key_layout.find_keys(self.layer_list)
            self.selector.warm_up()

    def _reserve_selection(self) -> None:
        """Let vLLM's memory profile see what the policies take that read all keys."""
        if self.queries.kept.numel() and not POLICIES[self.speculative_config.selection].needs_summaries:
            layer = self.layer_list[0]
            heads = layer.num_heads, layer.num_kv_heads, layer.head_size
            peak = peak_bytes(self.max_model_len, self.max_num_reqs, GRANULE, self.gamma + 1, *heads)
            torch.empty(peak, dtype=torch.uint8, device=self.device)
