"""What each selection policy promises, over keys held in a plain tensor."""

import numpy as np
import pytest
import torch

from vllm_std.mask import MaskShape
from vllm_std.selection import POLICIES, Observation, QueryWindow, Ranking

pytestmark = pytest.mark.fast

LAYERS, HEADS, KV_HEADS, SIZE, BLOCK, WINDOW = 2, 4, 2, 32, 16, 4
SHAPE = MaskShape(BLOCK, sink=1, top=3, recent=BLOCK)


class Context:
    """Two requests whose keys grow; `point_at` makes the next queries attend to one block."""

    def __init__(self, lengths):
        torch.manual_seed(0)
        self.lengths = lengths
        self.cache = torch.randn(LAYERS, len(lengths) * 64, KV_HEADS, BLOCK, SIZE)
        self.queries = torch.randn(LAYERS, len(lengths), WINDOW, HEADS, SIZE)
        self.ranking = Ranking(SHAPE, LAYERS, 8, None, torch.device("cpu"))

    def point_at(self, row: int, block: int) -> None:
        key = self.cache[:, row * 64 + block, :, 3]
        self.queries[:, row] = 3 * key.repeat_interleave(HEADS // KV_HEADS, 1)[:, None]

    def seen(self) -> Observation:
        rows = len(self.lengths)
        return Observation(
            queries=self.queries, num_queries=torch.full((rows,), WINDOW), length=torch.tensor(self.lengths),
            max_length=np.array(self.lengths), slots=torch.arange(rows), slots_np=np.arange(rows),
            drafting=np.ones(rows, bool), prompt_done=np.zeros(rows, bool),
            block_table=torch.arange(64 * rows).view(rows, 64),
            keys=lambda layer, blocks: self.cache[layer, blocks], means=self.cache.mean(3, keepdim=True), mask=SHAPE,
            scales=[SIZE**-0.5] * LAYERS,
        )  # fmt: skip

    def choose(self, policy, refresh=1) -> torch.Tensor:
        """A round of both requests: [layers, requests, top] block indices."""
        slots = torch.arange(len(self.lengths))
        due = policy.due(self.ranking.rounds[: len(slots)], refresh)
        self.ranking.rounds += 1
        if due.any():
            seen = self.seen().of(due)
            for layer in range(LAYERS):
                self.ranking.remember(layer, seen.slots, policy.score(seen, layer), seen.length)
        return self.ranking.choose(slots, torch.tensor(self.lengths))[0]


@pytest.fixture
def context() -> Context:
    return Context([400, 330])


@pytest.mark.parametrize("name", ["verify", "exact"])
def test_the_mask_follows_the_query_verified_last(context, name):
    for block in (5, 17, 9):
        context.point_at(0, block)
        context.point_at(1, block - 2)
        context.queries[:, :, : WINDOW - 1] = 0
        chosen = context.choose(POLICIES[name])
        assert (chosen[:, 0] == block).any(-1).all() and (chosen[:, 1] == block - 2).any(-1).all()


def test_refresh_keeps_a_choice_for_so_many_rounds_and_counts_them_by_request(context):
    context.point_at(0, 5)
    context.ranking.rounds[1] = 2
    first = context.choose(POLICIES["verify"], refresh=3)
    assert (context.ranking.blocks[:, 1] == context.ranking.blocks[:, 7]).all(), "the second is not due"
    context.point_at(0, 17)
    for _ in range(2):
        assert torch.equal(context.choose(POLICIES["verify"], refresh=3)[:, 0], first[:, 0])
    assert (context.choose(POLICIES["verify"], refresh=3)[:, 0] == 17).any(-1).all()


def test_text_is_decided_by_the_end_of_the_prompt(context):
    context.point_at(0, 5)
    first = context.choose(POLICIES["text"])
    assert (first[:, 0] == 5).any(-1).all()
    context.point_at(0, 17)
    assert torch.equal(context.choose(POLICIES["text"]), first)


def test_text_keeps_what_was_generated_in_place_of_its_lowest_ranked(context):
    context.point_at(0, 5)
    context.choose(POLICIES["text"])
    before, context.lengths = (400 - BLOCK) // BLOCK, [400 + 2 * BLOCK, 330]
    for layer in context.choose(POLICIES["text"])[:, 0].tolist():
        assert layer == [5, before, before + 1]


def test_a_row_of_the_batch_may_come_back_as_another_request(context):
    context.point_at(0, 5)
    context.choose(POLICIES["text"])
    context.point_at(0, 17)
    context.ranking.rounds[0] = 0
    assert (context.choose(POLICIES["text"])[:, 0] == 17).any(-1).all()


def test_streaming_keeps_the_latest_blocks(context):
    assert context.choose(POLICIES["streaming"])[0, 0].tolist() == [21, 22, 23]  # 24 opens the recent window


def test_random_draws_anew_for_each_layer_and_round(context):
    draws = [context.choose(POLICIES["random"]) for _ in range(8)]
    assert len({tuple(draw.flatten().tolist()) for draw in draws}) > 1
    assert any(not torch.equal(draw[0], draw[1]) for draw in draws)


@pytest.mark.parametrize("query_lens,rejected", [([4, 4], [0, 3]), ([1, 4], [0, 2]), ([300, 2], [0, 0])])
def test_the_window_keeps_the_last_queries_and_counts_the_verified(query_lens, rejected):
    window = QueryWindow((LAYERS, 8, WINDOW, HEADS, SIZE), torch.float32, torch.device("cpu"))
    starts = torch.tensor([0, *np.cumsum(query_lens)])
    queries = torch.randn(sum(query_lens), HEADS, SIZE)
    window.see(1, queries, starts)
    counted = window.count(starts, torch.tensor(rejected))
    for row, (n, lost) in enumerate(zip(query_lens, rejected)):
        kept = min(n, WINDOW)
        assert counted[row] == kept - lost
        assert torch.equal(window.kept[1, row, :kept], queries[starts[row + 1] - kept : starts[row + 1]])
