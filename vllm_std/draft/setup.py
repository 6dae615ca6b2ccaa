"""What vLLM asks of a speculator before the first round: buffers, weights, attention groups and selection."""

import torch
from torch import Tensor

from vllm_std.draft.announcement import announce
from vllm_std.draft.buffers import DraftBuffers
from vllm_std.draft.state import DraftState
from vllm_std.draft.target import Target
from vllm_std.patches.groups import draft_groups, require_backends, require_masked_attention
from vllm_std.patches.metadata import plan_on_cpu
from vllm_std.patches.spec_decode import TargetDependentARSpeculator
from vllm_std.proposals.lookup import Lookup
from vllm_std.proposals.passes import DraftPasses
from vllm_std.selection.batch import BatchBuffers
from vllm_std.selection.reads import granule
from vllm_std.selection.selector import Selector
from vllm_std.selection.summaries import KeySummaries


class DraftSetup(TargetDependentARSpeculator):
    """vLLM's speculator, with the target as its own draft model; all that is std's is in `std`.

    vLLM's multi-step decode starts at step 1, after an Eagle-like prefill that std does not need. So column 0 of
    `draft_tokens` holds the token that the target has just sampled, and drafts stand in columns 1 to gamma.
    """

    def __init__(self, vllm_config, device: torch.device, token_ids: Tensor):
        """token_ids: [max_num_reqs, max_model_len] int32 of the requests, by row of vLLM's request state."""
        super().__init__(vllm_config, device)
        gamma, config = self.num_speculative_steps, vllm_config.model_config
        # As wide as the target's (vLLM's RopeState.positions), because compiled code may have its stride built in.
        rope_shape = (config.mrope_num_dims, self.max_num_tokens + 1) if config.uses_mrope else None
        self.std = DraftState(
            self.speculative_config, DraftBuffers(self.max_num_reqs, self.speculative_config, rope_shape, device)
        )
        self.draft_tokens = torch.zeros(self.max_num_reqs, gamma + 1, dtype=torch.int64, device=device)
        self.hidden_states = torch.zeros(self.max_num_reqs, self.hidden_size, dtype=self.dtype, device=device)
        if self.speculative_config.proposals:
            lookup = Lookup.of(self.speculative_config, vllm_config.model_config.hf_config)
            self.std.passes = DraftPasses(self, token_ids, lookup, gamma)

    def load_draft_model(self, target_model, target_attn_layer_names: set[str]):
        return target_model

    def load_model(self, target_model) -> None:
        super().load_model(target_model)
        self.supports_mm_inputs = False  # drafted tokens are text: the runner need not gather embeddings of videos
        sizes = (self.max_num_reqs * self.std.buffers.query_len, self.hidden_size, self.device)
        self.std.target = Target(target_model, self.vllm_config, *sizes)
        self.std.capture_queries(self.max_num_reqs, self.dtype, self.device)

    def set_attn(self, model_state, kv_cache_config, *args) -> None:
        """Build metadata builders of std's own over the target's layers, and the selector.

        Raises ValueError for layers and backends that std does not draft on.
        """
        std = self.std
        require_masked_attention(self.vllm_config, model_state)
        super().set_attn(model_state, kv_cache_config, *args)  # to everyone else std has no layers of its own
        groups, std.group = draft_groups(self.vllm_config, kv_cache_config, self.device, set(std.target.names))
        self.attn_groups = groups
        std.buffers.has_windows = sum(map(len, groups)) > 1
        self._configure_decode_metadata_update()
        require_backends(groups)
        std.selector = self._selector(kv_cache_config.num_blocks)
        if not self._profiling(kv_cache_config):
            announce(self, sum(tensor.size for tensor in kv_cache_config.kv_cache_tensors))

    def _profiling(self, kv_cache_config) -> bool:
        """Whether vLLM measures the memory of CUDA graphs, on a small KV cache."""
        return self.vllm_config.cache_config.num_gpu_blocks != kv_cache_config.num_blocks

    def _selector(self, num_blocks: int) -> Selector:
        """num_blocks: of the KV cache manager, which a backend may divide into smaller ones."""
        std, layer, spec = self.std, self.std.target.layers[0], self.std.group.kv_cache_spec
        block_size = std.group.kernel_block_size or spec.block_size
        summaries = None
        if std.policy.needs_summaries:
            blocks = num_blocks * spec.block_size // block_size
            shape = (len(std.target.layers), blocks, layer.num_kv_heads, block_size // granule(block_size))
            summaries = KeySummaries((*shape, layer.head_size), self.dtype, self.device)
        batch = BatchBuffers(self._block_table())
        return Selector(std.policy, std.options, block_size, batch, std.queries, std.target.scales, summaries)

    def _block_table(self) -> Tensor:
        """[max_num_reqs, blocks] int32 block table of the full layers, always at the same address."""
        group = self.std.group
        return group.map_to_kernel_block_table(self.block_tables.input_block_tables[group.kv_cache_group_id])

    def _configure_decode_metadata_update(self) -> None:
        """As vLLM's base class has it, for a draft length of 1 as well: the first step is a decode step too."""
        plan_on_cpu(self.attn_groups)
        super(TargetDependentARSpeculator, self)._configure_decode_metadata_update()
