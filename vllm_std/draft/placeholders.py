"""What stands in place of drafts after a round that failed."""

import torch
from torch import Tensor

from vllm_std.draft.inputs import RoundInputs
from vllm_std.proposals.certainty import set_certain


def placeholders(speculator, inputs: RoundInputs) -> Tensor:
    """[reqs, gamma] int64 token 0, because the next step was scheduled with room for drafts.

    It counts as drawn with certainty. What the failed round left incomplete, the next round does again.
    """
    with speculator.std.faults.caught("round"):
        speculator.std.selector.restart(inputs.slots, inputs.max_context_lens.numpy())
    logits = speculator.draft_logits
    if logits is not None:
        steps = torch.arange(logits.shape[1], device=logits.device)
        set_certain(logits, inputs.input_batch.idx_mapping.long()[:, None], steps, 0)
    return speculator.draft_tokens[: inputs.num_reqs, 1:].zero_()
