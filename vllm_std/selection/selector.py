"""Selection from round to round: summaries, scores, and the masked block tables that drafts attend through."""

import torch
from torch import Tensor

from vllm_std.config import StdConfig
from vllm_std.mask import cdiv
from vllm_std.selection.base import Observation
from vllm_std.selection.policies import POLICIES
from vllm_std.selection.ranking import Ranking
from vllm_std.selection.summaries import KeySummaries


class Selector:
    """Keeps the best blocks of each request.

    options: as the engine was started; draft_length: gamma; summaries: where the policy needs them.
    tables: [layers, max_num_reqs, width] int32, the masked block tables of this round; budget: [max_num_reqs] how many
    blocks between sink and recent window each of them keeps at most.
    """

    def __init__(
        self, options: StdConfig, block_size: int, draft_length: int, num_layers: int, max_num_reqs: int,
        summaries: KeySummaries | None, device: torch.device,
    ):  # fmt: skip
        self.start, self.block_size, self.draft_length = options, block_size, draft_length
        self.summaries, self.shape, self.device = summaries, (num_layers, max_num_reqs), device
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
        self.ranking = Ranking(self.mask, *self.shape, self.options.coverage, self.device)
        width = self.mask.width(self.draft_length)
        self.tables = torch.zeros(*self.shape, width, dtype=torch.int32, device=self.device)
        self.budget = torch.full(self.shape[1:], self.mask.top, device=self.device)

    def summarise(self, seen: Observation) -> None:
        """Summarise the blocks that the pass has completed: all of them where it has completed a prompt."""
        self.ranking.rounds[seen.slots_np[seen.prompt_done]] = 0
        if self.summaries is None:
            return
        for row in seen.prompt_done.nonzero()[0]:  # none was rejected there, so the host knows the length
            complete = seen.max_length[row] // self.block_size
            self.summaries.update(seen.keys, seen.block_table[row, :complete])
        rows = seen.on_device(seen.drafting & ~seen.prompt_done)
        if len(rows):
            newest = seen.length[rows, None] // self.block_size - 1
            back = torch.arange(cdiv(self.draft_length + 1, self.block_size) + 1, device=self.device)
            blocks = seen.block_table[rows].gather(1, (newest - back).clamp(min=0))
            self.summaries.update(seen.keys, blocks.flatten())

    def select(self, seen: Observation) -> None:
        """Score whom it is time to score, and fill `tables` and `budget`."""
        rounds, num_reqs = self.ranking.rounds[seen.slots_np], len(seen.slots_np)
        due = seen.drafting & self.policy.due(rounds, self.options.refresh)
        self.ranking.rounds[seen.slots_np] += seen.drafting
        if due.any():
            some = seen.of(due)
            for layer in range(self.shape[0]):
                self.ranking.remember(layer, some.slots, self.policy.score(some, layer), some.length)
        chosen, budget = self.ranking.choose(seen.slots, seen.length)
        width = self.tables.shape[-1]
        self.tables[:, :num_reqs] = self.mask.table(chosen, budget, seen.block_table, seen.length, width)
        self.budget[:num_reqs] = budget

    def dropped_tokens(self, length: Tensor) -> Tensor:
        """[reqs] tokens that the masks of this round leave out; length: [reqs] verified tokens."""
        return self.mask.dropped_tokens(length, self.budget[: len(length)])
