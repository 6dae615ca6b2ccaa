"""A round that failed: the scheduler is told, and tensor-parallel ranks agree on what to do."""

from datetime import timedelta

import torch
from vllm.distributed.parallel_state import get_tp_group

from vllm_std.patches.wrapping import Patch

FAULTS = Patch(
    name="faults",
    replaces=(
        "GPUModelRunner.sample_tokens (a count `std_faults` goes with its ModelRunnerOutput); get_tp_group().cpu_group "
        "(a barrier, after a fault only)"
    ),
    why="a speculator has no way to tell the scheduler anything but tokens",
    upstream="none",
    remove_when="ModelRunnerOutput carries what a speculator adds",
)


def sample_tokens(original, self, *args, **kwargs):
    """GPUModelRunner.sample_tokens: the faults of the round go to the scheduler with the tokens of the step."""
    output = original(self, *args, **kwargs)
    std = getattr(self.speculator, "std", None)
    if std is not None and std.faults.counts and output is not None:
        getattr(output, "model_runner_output", output).std_faults = std.faults.collect()
    return output


def ranks_agree(seconds: float = 5.0) -> bool:
    """Whether every tensor-parallel rank calls this within so many seconds; called where a rank has failed."""
    group = get_tp_group()
    if group.world_size == 1:
        return True
    try:
        torch.distributed.monitored_barrier(group.cpu_group, timeout=timedelta(seconds=seconds))
    except RuntimeError:
        return False
    return True
