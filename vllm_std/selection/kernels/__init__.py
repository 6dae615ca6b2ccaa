"""The Triton kernels of selection. What each does in torch is `definition`; a CPU runs `loops` instead.

score_summaries, score_keys, block_shares, choose_candidates and keep_top_k run over (layer, request) pairs: pair i of a
launch is number first + i, of layer (first + i) // num_rows and row (first + i) % num_rows of the batch.
"""

from vllm_std.selection.kernels.capture import capture_queries, summarise_blocks
from vllm_std.selection.kernels.scoring import score_keys, score_summaries
from vllm_std.selection.kernels.softmax import block_shares
from vllm_std.selection.kernels.tables import fill_tables
from vllm_std.selection.kernels.top_blocks import choose_candidates, keep_top_k

__all__ = [
    "block_shares",
    "capture_queries",
    "choose_candidates",
    "fill_tables",
    "keep_top_k",
    "score_keys",
    "score_summaries",
    "summarise_blocks",
]
