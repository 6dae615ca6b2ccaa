"""Selection from round to round: summaries, scores, and the masked block tables that drafts attend through."""

import numpy as np
import torch
from torch import Tensor

from vllm_std.config import StdConfig
from vllm_std.mask import cdiv
from vllm_std.patches.copies import async_tensor_h2d
from vllm_std.selection.base import Observation, Round
from vllm_std.selection.keys import KeyCache
from vllm_std.selection.policies import POLICIES
from vllm_std.selection.queries import QueryWindow
from vllm_std.selection.ranking import Ranking
from vllm_std.selection.scoring import Scorer, workspace_bytes
from vllm_std.selection.summaries import KeySummaries


def selection_bytes(options: StdConfig, block_size: int, num_layers: int, reqs: int, heads: int) -> int:
    """Memory that selection takes besides key summaries and observation queries; heads: query heads of a worker."""
    mask, width = options.mask_shape(block_size), cdiv(options.target_model_config.max_model_len, block_size)
    tables = num_layers * reqs * (mask.width(options.num_speculative_tokens) + 2 * mask.top) * 4
    kernels = POLICIES[options.selection].needs_summaries
    return tables + (
        workspace_bytes(mask, num_layers, reqs, heads, width, options.target_model_config.dtype) if kernels else 0
    )


class Selector:
    """Keeps the best blocks of each request.

    options: as the engine was started; round: the batch; summaries: where the policy needs them.
    tables: [layers, max_num_reqs, width] int32, the masked block tables of this round. cache: set once vLLM has
    allocated it.
    """

    cache: KeyCache = None  # type: ignore[assignment]

    def __init__(
        self, options: StdConfig, block_size: int, round: Round, queries: QueryWindow, scales: list[float],
        summaries: KeySummaries | None,
    ):  # fmt: skip
        self.start, self.block_size, self.round = options, block_size, round
        self.queries, self.summaries = queries, summaries
        self.scales = torch.tensor(scales, dtype=torch.float32, device=round.table.device)
        self.change()

    def change(self, **options) -> None:
        """Select otherwise from now on, while no request is running; options not given are those of the start.

        Raises ValueError for what StdConfig refuses, and for a policy that needs what the first one did not keep.
        """
        self.options = self.start.changed(**options)
        self.policy, first = POLICIES[self.options.selection], POLICIES[self.start.selection]
        if self.policy.needs_queries > first.needs_queries or self.policy.needs_summaries > first.needs_summaries:
            raise ValueError(f"selection={self.options.selection} needs an engine started with selection=verify.")
        self.mask = self.options.mask_shape(self.block_size)
        layers, reqs, device = len(self.scales), len(self.round.table), self.scales.device
        limit = self.options.target_model_config.max_model_len
        self.ranking = Ranking(self.mask, layers, reqs, limit, self.options.coverage, device)
        self.rounds = np.zeros(reqs, dtype=np.int64)  # by slot: drafted since the prompt was complete
        self.missed = np.zeros(reqs, dtype=np.int64)  # by slot: tokens verified at most that no summary has seen
        width = self.mask.width(self.start.num_speculative_tokens)
        self.tables = torch.zeros(layers, reqs, width, dtype=torch.int32, device=device)
        self.scorer: Scorer | None = None
        if self.policy.needs_summaries and self.summaries is not None:
            sizes = self.scales, self.round.table.shape[1]
            self.scorer = Scorer(self.mask, self.summaries.means, self.queries.kept, *sizes)

    def warm_up(self) -> None:
        """Compile what no CUDA graph holds, and on a CPU all of it, before a request waits. Nobody drafts yet."""
        if self.summaries is not None:
            self.summaries.update(self.cache, self.round.length, self.round.table, np.ones(1, dtype=np.int64))
        if self.round.table.is_cpu:
            self.fill(1, torch.zeros(1, dtype=torch.int32))
            if self.queries.kept.numel():
                starts = torch.zeros(2, dtype=torch.int32)
                self.queries.see(0, self.queries.kept.new_empty(0, *self.queries.kept.shape[3:]), starts)

    def miss(self, slots: np.ndarray, tokens: np.ndarray, prompt_done: np.ndarray, length: np.ndarray) -> None:
        """Note a dense pass that nobody drafts after; on the host alone, so that plain decoding costs what it does.

        [reqs]: slots: rows of vLLM's request state; tokens: of the pass; prompt_done: whose prompt is complete since;
        length: at most so long is the context.
        """
        self.missed[slots] += tokens
        self.rounds[slots[prompt_done]] = 0
        self.missed[slots[prompt_done]] = length[prompt_done]

    def begin(self, seen: Observation, slots: np.ndarray, drafting: np.ndarray, asked: bool) -> None:
        """Take in a dense pass, and summarise the blocks completed since the last one that was taken in.

        On the host, [reqs]: slots: rows of vLLM's request state; drafting: who drafts; asked: whether the pass has left
        queries behind, without which nobody is scored.
        """
        unscored = self.rounds[slots] == 0
        self.due = drafting & self.policy.due(self.rounds[slots], self.options.refresh) & asked
        flags = async_tensor_h2d(np.stack([drafting, self.due]).astype(np.int32), seen.length.device)
        self.round.begin(seen.slots, seen.length, seen.last, flags)
        if not asked and (unscored & drafting).any():
            self.ranking.forget(slots[unscored & drafting])
        self.rounds[slots] += drafting & asked
        if self.summaries is not None:
            newest = drafting * self._newest(self.missed[slots], seen.max_length)
            self.summaries.update(self.cache, self.round.length, self.round.table, newest)
        self.missed[slots[drafting]] = 0

    def _newest(self, missed: np.ndarray, max_length: np.ndarray) -> np.ndarray:
        """[reqs] blocks that a request may have completed since its last round; missed: tokens besides that round's."""
        size = self.cache.block_size
        return np.minimum(cdiv(self.start.num_speculative_tokens + 1 + missed, size) + 1, max_length // size)

    def score(self, seen: Observation, slots: np.ndarray) -> None:
        """Score by policies that have no kernels of their own."""
        self.ranking.reset(slots[self.due])
        if self.scorer or not self.due.any():
            return
        some, reqs = seen.of(self.due), len(slots)
        mass, at = seen.zeros(), async_tensor_h2d(self.due.nonzero()[0], seen.length.device)
        for layer in range(len(self.scales)):
            mass[at, : some.num_blocks] = self.policy.score(some, layer)
            self.ranking.remember(mass, self.round, reqs, layer * reqs, reqs)

    def fill(self, num_rows: int, seq_lens: Tensor) -> None:
        """Score whom it is time to score by kernels, and fill `tables` and `seq_lens` for the first rows of a batch.

        Device work on persistent buffers alone: a CUDA graph can hold it. seq_lens: [max_num_reqs] int32, what the
        first draft step attends to.
        """
        if self.scorer:
            self.scorer.run(self.cache, self.round, num_rows, self.ranking)
        self.ranking.fill(self.tables, seq_lens, self.round, num_rows)
