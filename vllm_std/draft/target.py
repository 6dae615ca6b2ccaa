"""The target model as its own draft model."""

from collections.abc import Callable

import torch
from torch import Tensor

from vllm_std.patches.adapters import Adapters
from vllm_std.patches.groups import full_layers, require_masked_attention
from vllm_std.patches.queries import observe_queries, query_scale
from vllm_std.patches.spec_decode import requires_raw_input_tokens


class Target:
    """The target's full-attention layers, which drafts mask, and its forward in a draft step.

    names, layers, scales: of these layers in model order; windowed layers are not among them. adapters: LoRA.
    Raises ValueError for a model that no mask applies to.
    """

    def __init__(self, model, vllm_config, max_num_tokens: int, hidden_size: int, device: torch.device):
        self.model = model
        found = full_layers(vllm_config)
        if not found:
            require_masked_attention(vllm_config, None)
        self.names = list(found)
        self.layers = list(found.values())
        self.scales = [query_scale(layer) for layer in self.layers]
        self.adapters = Adapters(model)
        self.takes_raw_tokens = requires_raw_input_tokens(model)
        config = vllm_config.model_config
        self.embeds: Tensor | None = None
        if config.supports_multimodal_inputs or config.enable_prompt_embeds:
            # Such a model is compiled for embeddings instead of token ids, for text as well.
            self.embeds = torch.zeros(max_num_tokens, hidden_size, dtype=config.dtype, device=device)

    def observe_queries(self, capture: Callable[[int, Tensor, Tensor], None]) -> None:
        """Call capture(layer, query, query_start_loc) before each forward, as `patches.queries.observe_queries`."""
        for index, layer in enumerate(self.layers):
            observe_queries(layer, index, capture)

    def forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        """[tokens, hidden size], as vLLM's runner calls the model.

        input_ids: [tokens]; positions: [tokens], or [rope dimensions, tokens].
        """
        embeds = None
        if self.embeds is not None:
            embeds = self.embeds[: len(input_ids)]
            embeds.copy_(self.model.embed_input_ids(input_ids))
        raw_ids = input_ids if embeds is None or self.takes_raw_tokens else None
        return self.model(input_ids=raw_ids, positions=positions, intermediate_tensors=None, inputs_embeds=embeds)
