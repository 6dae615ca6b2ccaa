"""The memory that selection takes: most is what `scoring.Scorer` works in, some (layer, request) pairs at once."""

import torch

from vllm_std.config import StdConfig
from vllm_std.mask import MaskShape, cdiv
from vllm_std.selection.policies import POLICIES
from vllm_std.selection.reads import KeyReads

LOG_SUM_BYTES = 2**27  # bytes of log-sum-exps at most
PARTS = 16  # programs at most that share the blocks of a pair
MAX_GRID = 65_535  # programs in the second and third dimension of a CUDA grid


def aligned(width: int) -> int:
    """Columns for so many blocks, so that rows are read in vectors."""
    return 16 * cdiv(width, 16)


def log_sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """In which log-sum-exps are kept: float16 for a model of 16 bits, whose rounding is at most that of its keys."""
    return torch.float16 if dtype.itemsize == 2 else torch.float32


def pairs_at_once(num_layers: int, reqs: int, heads: int, width: int, dtype: torch.dtype) -> int:
    """(layer, request) pairs in a launch. heads: query heads; width: most blocks of a request; dtype: the model's."""
    pair_bytes = heads * aligned(width) * log_sum_dtype(dtype).itemsize
    return max(1, min(num_layers * reqs, LOG_SUM_BYTES // pair_bytes, MAX_GRID))


def workspace_bytes(mask: MaskShape, num_layers: int, reqs: int, heads: int, width: int, dtype: torch.dtype) -> int:
    """Bytes of a `Workspace`; the arguments are those of `pairs_at_once`."""
    pair_bytes = heads * aligned(width) * log_sum_dtype(dtype).itemsize
    pair_bytes += 4 * (aligned(width) + KeyReads.plan(mask).most + 4 * PARTS * heads)
    return pairs_at_once(num_layers, reqs, heads, width, dtype) * pair_bytes


def selection_bytes(options: StdConfig, block_size: int, num_layers: int, reqs: int, heads: int) -> int:
    """Bytes that selection takes besides key summaries and observation queries; heads: query heads of a worker."""
    mask, width = options.mask_shape(block_size), cdiv(options.target_model_config.max_model_len, block_size)
    tables = num_layers * reqs * (mask.width(options.num_speculative_tokens) + 2 * mask.top) * 4
    if not POLICIES[options.selection].needs_summaries:
        return tables
    return tables + workspace_bytes(mask, num_layers, reqs, heads, width, options.target_model_config.dtype)


class Workspace:
    """Buffers of the scoring kernels.

    log_sums: [pairs, KV heads, width, group], part_max, part_sum: [pairs, 2 * PARTS, query heads] float32, as
    `kernels.softmax` has them. scores: [pairs, width] float32. read_blocks: [pairs, KeyReads.most] int32, blocks whose
    keys are read.
    """

    def __init__(self, reads: KeyReads, pairs: int, heads: int, kv_heads: int, width: int, model: torch.Tensor):
        """width: blocks of a request at most; model: a tensor of the model's dtype, on its device."""
        device, self.pairs, self.width = model.device, pairs, aligned(width)
        shape = (pairs, kv_heads, self.width, heads // kv_heads)
        self.log_sums = torch.empty(shape, device=device, dtype=log_sum_dtype(model.dtype))
        self.scores = torch.empty(pairs, self.width, device=device, dtype=torch.float32)
        self.part_max = torch.empty(pairs, 2 * PARTS, heads, device=device, dtype=torch.float32)
        self.part_sum = torch.empty_like(self.part_max)
        self.read_blocks = torch.empty(pairs, reads.most, device=device, dtype=torch.int32)
