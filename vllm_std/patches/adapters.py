"""LoRA adapters of the requests, for passes that verify drafts and for draft steps."""

import numpy as np
from vllm.lora.layers import LoRAMapping, LoRAMappingType

from vllm_std.patches.wrapping import Patch

ADAPTERS = Patch(
    name="adapters",
    replaces=(
        "LoRAModelManager.set_adapter_mapping of the target (seen, and called for draft steps); GPUModelRunner.sample "
        "(calls it for each verified token before)"
    ),
    why=(
        "nothing tells a speculator the adapters of a batch; and Model Runner V2 maps them to one logit of each "
        "request, where one that verifies drafts has more (Model Runner V1 had it mended in #21068)"
    ),
    upstream="vLLM #21068",
    remove_when="InputBatch shows the adapters of its requests, and Model Runner V2 maps them to all logits",
)


class Adapters:
    """The adapters of the dense pass, applied to what it verifies and to the draft steps after it.

    Without `--enable-lora` it does nothing.
    """

    def __init__(self, model):
        self.ids = np.zeros(0, dtype=np.int64)  # of each request of the pass, 0 for none
        self.manager = getattr(model, "lora_manager", None)
        if self.manager is None:
            return
        self.original = self.manager.set_adapter_mapping

        def set_adapter_mapping(mapping: LoRAMapping) -> None:
            if mapping.type is LoRAMappingType.LANGUAGE:
                self.ids = np.array(mapping.prompt_mapping, dtype=np.int64)
            self.original(mapping)

        self.manager.set_adapter_mapping = set_adapter_mapping

    def map(self, tokens: np.ndarray, padding: int = 0) -> None:
        """Apply adapters to so many tokens of each request until the next dense pass.

        tokens: [reqs] tokens of each request, in the order of the batch. padding: tokens after them, of no request.
        """
        if self.manager is None:
            return
        ids = np.resize(self.ids, len(tokens)) if len(self.ids) else np.zeros(len(tokens), np.int64)  # a dummy pass
        by_token = (*ids.repeat(tokens).tolist(), *[0] * padding)
        self.original(LoRAMapping(by_token, by_token, is_prefill=True))


def sample(original, self, hidden_states, input_batch, *args, **kwargs):
    """GPUModelRunner.sample: vLLM maps adapters to one logit of each request; a request with drafts has more."""
    std = getattr(self.speculator, "std", None)
    if std is not None and input_batch.num_draft_tokens:
        std.target.adapters.map(np.diff(input_batch.cu_num_logits_np))
    return original(self, hidden_states, input_batch, *args, **kwargs)
