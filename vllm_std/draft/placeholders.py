"""What stands in place of drafts after a round that failed."""

import torch
from torch import Tensor

from vllm_std.draft.inputs import RoundInputs


def placeholders(speculator, inputs: RoundInputs) -> Tensor:
    """[reqs, gamma] int64 token 0, because the next step was scheduled with room for drafts.

    It counts as drawn with certainty, so that verification stays exact. What the failed round left incomplete, the next
    round does again.
    """
    with speculator.std.faults.caught("round"):
        speculator.std.selector.restart(inputs.slots, inputs.max_context_lens.numpy())
    logits = speculator.draft_logits
    if logits is not None:
        rows = inputs.input_batch.idx_mapping.long()
        logits[rows] = torch.finfo(logits.dtype).min
        logits[rows, :, 0] = 0
    return speculator.draft_tokens[: inputs.num_reqs, 1:].zero_()
