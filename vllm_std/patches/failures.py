"""A round that failed: the scheduler is told, and tensor-parallel ranks agree on what to do."""

from datetime import timedelta

import torch
from vllm.distributed.parallel_state import get_tp_group

from vllm_std.patches.wrapping import Patch

FAULTS = Patch(
    name="faults",
    replaces="get_tp_group().cpu_group (a barrier, after a fault only)",
    why="a speculator has no way to agree with other ranks on what to do after a fault",
    upstream="none",
    remove_when="vLLM handles a speculator's errors",
)


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
