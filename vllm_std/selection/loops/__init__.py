"""The loops of selection on a CPU, compiled by numba; `native` calls them, and `definition` says what they do.

Keys and means are read where they lie. Values of 16 and 8 bits come as whole numbers: int16 is bfloat16, uint32 is two
of them, and what else there is finds its value in a table.
"""

from vllm_std.selection.loops.scores import score
from vllm_std.selection.loops.tables import capture_queries, fill_tables, mean_keys

__all__ = ["capture_queries", "fill_tables", "mean_keys", "score"]
