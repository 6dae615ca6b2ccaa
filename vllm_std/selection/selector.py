"""Selection from round to round: which KV blocks each request's draft steps attend to.

capture     each layer keeps the last queries of a request in the dense pass (`queries`)
summarise   the blocks that the pass has completed get their mean keys (`summaries`)
score       by a policy: from summaries and candidates' keys (`scoring`), or from all keys (`attention`)
keep        the best blocks of each request and layer (`ranking`)
fill        the masked block tables that draft steps attend through (`ranking`)

`begin` is the part that needs the host. `select` is device work on persistent buffers, which a CUDA graph holds.
"""

import numpy as np
import torch
from torch import Tensor

from vllm_std.config import StdConfig
from vllm_std.mask import cdiv
from vllm_std.patches.copies import async_tensor_h2d
from vllm_std.selection.batch import BatchBuffers, DensePass, Pairs
from vllm_std.selection.keys import KeyCache
from vllm_std.selection.policies import Policy
from vllm_std.selection.queries import QueryWindow
from vllm_std.selection.ranking import Ranking
from vllm_std.selection.scoring import Scorer
from vllm_std.selection.summaries import KeySummaries


class Selector:
    """Keeps the best blocks of each request.

    policy, options: as the engine was started. batch: the batch's buffers. queries, summaries: where the policy needs
    them. scales: [layers] softmax scales.
    cache: set once vLLM has allocated it.
    mask: the blocks of a request that are kept. tables: [layers, max_num_reqs, mask.width] int32, the masked block
    tables of this round. due: [reqs] bool on the host, whose blocks were scored in it.
    """

    cache: KeyCache = None  # type: ignore[assignment]

    def __init__(
        self,
        policy: Policy,
        options: StdConfig,
        block_size: int,
        batch: BatchBuffers,
        queries: QueryWindow,
        scales: list[float],
        summaries: KeySummaries | None,
    ):
        self.start_policy, self.start_options = policy, options
        self.block_size, self.batch = block_size, batch
        self.queries, self.summaries = queries, summaries
        self.scales = torch.tensor(scales, dtype=torch.float32, device=batch.block_table.device)
        self.change()

    def change(self, policy: Policy | None = None, **options) -> None:
        """Select otherwise from now on, while no request is running; what is not given is as at the start.

        Raises ValueError for what StdConfig refuses, and for a policy that needs what the first one did not keep.
        """
        self.policy, self.options = policy or self.start_policy, self.start_options.changed(**options)
        for need in ("needs_queries", "needs_summaries"):
            if getattr(self.policy, need) > getattr(self.start_policy, need):
                name = type(self.policy).__name__.lower()
                raise ValueError(f"selection={name} needs an engine started with selection=verify.")
        self.mask = self.options.mask_shape(self.block_size)
        layers, reqs, device = len(self.scales), len(self.batch.block_table), self.scales.device
        self.ranking = Ranking(self.mask, layers, reqs, self.options.target_model_config.max_model_len, device)
        self.rounds = np.zeros(reqs, dtype=np.int64)  # by slot, since the prompt was complete
        self.unsummarised = np.zeros(reqs, dtype=np.int64)  # by slot, verified tokens at most that no summary holds
        width = self.mask.width(self.start_options.most_lookahead)
        self.tables = torch.zeros(layers, reqs, width, dtype=torch.int32, device=device)
        self.scorer: Scorer | None = None
        if self.policy.needs_summaries and self.summaries is not None:
            columns = self.batch.block_table.shape[1]
            self.scorer = Scorer(self.mask, self.summaries.means, self.queries.kept, self.scales, columns)

    def warm_up(self) -> None:
        """Compile what no CUDA graph holds, and on a CPU all of it, before a request waits. Nobody drafts yet."""
        if self.summaries is not None:
            self.summaries.update(self.cache, self.batch.context_lens, self.batch.block_table, np.ones(1, np.int64))
        if self.batch.block_table.is_cpu:
            self.select(1, torch.zeros(1, dtype=torch.int32))
            if self.queries.kept.numel():
                starts = torch.zeros(2, dtype=torch.int32)
                self.queries.capture(0, self.queries.kept.new_empty(0, *self.queries.kept.shape[3:]), starts)

    def skip_round(self, slots: np.ndarray, tokens: np.ndarray) -> None:
        """Note a dense pass that no round follows; on the host alone, so that plain decoding costs what it does.

        slots: [reqs] rows of vLLM's request state; tokens: [reqs] of the pass.
        """
        self.unsummarised[slots] += tokens

    def restart(self, slots: np.ndarray, max_context_lens: np.ndarray) -> None:
        """Nothing is known of these requests: their prompts are complete since the last round.

        slots: [n] rows of vLLM's request state; max_context_lens: [n] upper bounds of their tokens in the KV cache.
        """
        self.rounds[slots] = 0
        self.unsummarised[slots] = max_context_lens

    def begin(self, dense_pass: DensePass, slots: np.ndarray, drafting: np.ndarray, has_queries: bool) -> None:
        """Take in a dense pass that a round follows; score its requests, unless `select` does that from summaries.

        On the host, [reqs]: slots: rows of vLLM's request state; drafting: bool, who drafts. has_queries: whether the
        pass has left observation queries; without them the round is unscored.
        """
        rounds = self.rounds[slots]
        self.due = drafting & self.policy.due(rounds, self.options.refresh) & has_queries
        flags = async_tensor_h2d(np.stack([drafting, self.due]).astype(np.int32), dense_pass.context_lens.device)
        self.batch.load(dense_pass.slots, dense_pass.context_lens, dense_pass.last_query, flags)
        never_scored = drafting & (rounds == 0)
        if not has_queries and never_scored.any():
            self.ranking.forget(slots[never_scored])
        self.rounds[slots] += drafting & has_queries
        self._summarise(slots, drafting, dense_pass.max_context_lens)
        if self.scorer is None and self.due.any():
            self._score(dense_pass)

    def _summarise(self, slots: np.ndarray, drafting: np.ndarray, max_context_lens: np.ndarray) -> None:
        """Summarise the blocks that requests may have completed since their last round."""
        if self.summaries is not None:
            block_size, tokens = self.cache.block_size, self.start_options.num_speculative_tokens + 1
            newest = cdiv(tokens + self.unsummarised[slots], block_size) + 1
            newest = drafting * np.minimum(newest, max_context_lens // block_size)
            self.summaries.update(self.cache, self.batch.context_lens, self.batch.block_table, newest)
        self.unsummarised[slots[drafting]] = 0

    def _score(self, dense_pass: DensePass) -> None:
        """Score by a policy that has no kernels of its own."""
        due, reqs, scores = dense_pass.only(self.due), len(self.due), dense_pass.zero_scores()
        rows = async_tensor_h2d(self.due.nonzero()[0], scores.device)
        for layer in range(len(self.scales)):
            scores[rows, : due.num_blocks] = self.policy.score(due, layer)
            self.ranking.keep_top_k(scores, self.batch, Pairs(reqs, layer * reqs, reqs))

    def select(self, num_rows: int, seq_lens: Tensor) -> None:
        """Score from summaries, where the policy does, and fill `tables` and `seq_lens` for the first rows of a batch.

        seq_lens: [max_num_reqs] int32, out: tokens that the first draft step attends to.
        """
        if self.scorer is not None:
            self.scorer.run(self.cache, self.batch, num_rows, self.ranking)
        self.ranking.fill_tables(self.tables, seq_lens, self.batch, num_rows)
