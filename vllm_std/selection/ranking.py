"""The best blocks of each request, kept from one scoring to the next, and the masked block tables made of them."""

import numpy as np
import torch
import triton
from torch import Tensor

from vllm_std.mask import MaskShape
from vllm_std.patches.copies import async_tensor_h2d
from vllm_std.selection import definition, native, tiles
from vllm_std.selection.batch import BatchBuffers, Pairs
from vllm_std.selection.kernels import fill_tables, keep_top_k
from vllm_std.selection.keys import by_kernel


class Ranking:
    """The best blocks of each request and layer, by row of vLLM's request state, its slot.

    Blocks that have left the recent window since the last scoring were not scored then: all of them are kept, in place
    of the lowest ranked. So a mask scored once still follows the end of a growing answer (paper, section 3.2), and one
    never scored is sink and recent blocks alone (StreamingLLM, arXiv 2309.17453).

    blocks: [layers, max_num_reqs, mask.top] int32, increasing; scores: the same in float32.
    scored_until: [max_num_reqs] int32, the block in which the recent window began at the last scoring, 0 before it.
    budget: [max_length + 1] int32, blocks to choose by tokens of context.
    """

    def __init__(self, mask: MaskShape, num_layers: int, max_num_reqs: int, max_length: int, device: torch.device):
        self.mask = mask
        shape = (num_layers, max_num_reqs, mask.top)
        self.blocks = torch.zeros(shape, dtype=torch.int32, device=device)
        self.scores = torch.zeros(shape, dtype=torch.float32, device=device)
        self.scored_until = torch.zeros(max_num_reqs, dtype=torch.int32, device=device)
        self.budget = mask.budget(torch.arange(max_length + 1)).to(device, torch.int32)

    def forget(self, slots: np.ndarray) -> None:
        """Nothing is known of these requests; slots: [n] on the host."""
        self.scored_until[async_tensor_h2d(slots, self.scored_until.device)] = 0

    def keep_top_k(self, scores: Tensor, batch: BatchBuffers, pairs: Pairs) -> None:
        """Keep the best blocks of (layer, request) pairs, where `batch.scored_lens` is not 0.

        scores: [pairs, blocks] float32, not negative.
        """
        mask = self.mask
        if not by_kernel(scores):
            return definition.keep_top_k(self, scores, batch, pairs.first // pairs.num_rows)
        keep_top_k[pairs.count,](
            scores, self.blocks, self.scores, self.scored_until, batch.slots, batch.scored_lens,
            width=scores.stride(0), num_rows=pairs.num_rows, first=pairs.first, TOP=mask.top,
            SLOTS=self.blocks.shape[1], SINK=mask.sink, RECENT=mask.recent, BLOCK_SIZE=mask.block_size,
            **tiles.of_scores(scores),
        )  # fmt: skip

    def fill_tables(self, tables: Tensor, seq_lens: Tensor, batch: BatchBuffers, num_rows: int) -> None:
        """Masked block tables, and the tokens that the first draft step attends to, of the first rows of a batch.

        tables: [layers, max_num_reqs, width] int32, out: physical blocks; seq_lens: [max_num_reqs] int32, out, the
        drafted token included. Rows that do not draft get a length of at most 1.
        """
        mask, (layers, max_rows, width) = self.mask, tables.shape
        if not by_kernel(tables):
            return native.fill_tables(self, tables, seq_lens, batch, num_rows)
        table = batch.block_table
        fill_tables[num_rows, layers](
            tables, seq_lens, self.blocks, self.scores, self.scored_until, batch.context_lens, batch.slots, self.budget,
            table, width=width, table_stride=table.stride(0), max_rows=max_rows, columns=table.shape[1], TOP=mask.top,
            PADDED_TOP=triton.next_power_of_2(mask.top), PADDED_WIDTH=triton.next_power_of_2(width), SINK=mask.sink,
            RECENT=mask.recent, BLOCK_SIZE=mask.block_size, **tiles.of_thresholds(tables),
        )  # fmt: skip
