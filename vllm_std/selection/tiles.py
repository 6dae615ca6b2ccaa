"""How much of a launch one program does: on a GPU little, so that many run; in Triton's interpreter much at once."""

import torch
import triton
from torch import Tensor

from vllm_std.selection.keys import interpreted


def processors(tensor: Tensor) -> int:
    """Multiprocessors of the GPU that a tensor is on; 0 on a CPU."""
    return torch.cuda.get_device_properties(tensor.device).multi_processor_count if tensor.is_cuda else 0


def block_tile(scores: Tensor) -> int:
    """Blocks looked at together; scores: [pairs, width]. On a GPU few: most requests are not as long as any may be."""
    return min(4096 if interpreted(scores) else 512, max(16, triton.next_power_of_2(scores.shape[1])))


def ways(tensor: Tensor) -> int:
    """Thresholds that are tried together, a power of two."""
    return 256 if interpreted(tensor) else 4


def of_scores(scores: Tensor) -> dict[str, int]:
    """Constants of the kernels that look for the best blocks of a pair; scores: [pairs, width].

    One warp for each 256 blocks looked at together: fewer wait less for each other, and more programs run at once.
    """
    tile = block_tile(scores)
    return {"TILE": tile, "WAYS": ways(scores), "num_warps": max(1, min(4, tile // 256))}


def of_thresholds(tensor: Tensor) -> dict[str, int]:
    """Constants of a kernel that finds a threshold of 32 bits: WAYS ** STEPS is 2 ** 32."""
    return {"WAYS": ways(tensor), "STEPS": 32 // (ways(tensor).bit_length() - 1)}
