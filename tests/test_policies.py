"""What each selection policy promises, over keys held in a plain tensor."""

import numpy as np
import pytest
import torch
from pipelines import Pipeline, key_cache

from vllm_std.mask import MaskShape
from vllm_std.selection.batch import Pairs
from vllm_std.selection.queries import QueryWindow
from vllm_std.tools.acceptance.policies import POLICIES

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("way")]

LAYERS, HEADS, KV_HEADS, SIZE, BLOCK, WINDOW = 2, 4, 2, 32, 16, 4
SHAPE = MaskShape(BLOCK, sink=1, top=3, recent=BLOCK)


class Context(Pipeline):
    """Two requests whose keys grow; `point_at` makes the next queries attend to one block."""

    def __init__(self, lengths):
        torch.manual_seed(0)
        self.lens, rows = lengths, len(lengths)
        self.caches = torch.randn(LAYERS, rows * 64, KV_HEADS, BLOCK, SIZE)
        table = torch.arange(64 * rows, dtype=torch.int32).view(rows, 64)
        super().__init__(SHAPE, key_cache(self.caches, SIZE), table, HEADS, gamma=WINDOW - 1)
        self.queries.kept.normal_()
        self.rounds = np.zeros(rows, int)
        self.load(torch.full((rows,), 64 * BLOCK))
        self.summarise(64)

    def point_at(self, row: int, block: int) -> None:
        key = self.caches[:, row * 64 + block, :, 3]
        self.queries.kept[:, row] = 3 * key.repeat_interleave(HEADS // KV_HEADS, 1)[:, None]

    def score_by(self, policy, due) -> None:
        dense_pass = self.dense_pass()
        for layer in range(LAYERS):
            scores = dense_pass.zero_scores()
            scores[torch.from_numpy(due)] = policy.score(dense_pass.only(due), layer)
            self.ranking.keep_top_k(scores, self.batch, Pairs(self.reqs, layer * self.reqs, self.reqs))

    def choose(self, policy, refresh=1) -> torch.Tensor:
        """A round of both requests: [layers, requests, top] block indices."""
        due = policy.due(self.rounds, refresh)
        self.rounds += 1
        self.load(torch.tensor(self.lens), due=torch.from_numpy(due))
        if policy.needs_summaries:
            self.score()
        elif due.any():
            self.score_by(policy, due)
        return self.fill()[0][:, :, SHAPE.sink : SHAPE.sink + SHAPE.top] % 64


@pytest.fixture
def context() -> Context:
    return Context([400, 330])


@pytest.mark.parametrize("name", ["verify", "exact"])
def test_the_mask_follows_the_query_verified_last(context, name):
    for block in (5, 17, 9):
        context.point_at(0, block)
        context.point_at(1, block - 2)
        context.queries.kept[:, :, : WINDOW - 1] = 0
        chosen = context.choose(POLICIES[name])
        assert (chosen[:, 0] == block).any(-1).all() and (chosen[:, 1] == block - 2).any(-1).all()


def test_refresh_keeps_a_choice_for_so_many_rounds_and_counts_them_by_request(context):
    context.point_at(0, 5)
    context.rounds[1] = 2
    first = context.choose(POLICIES["verify"], refresh=3)
    assert context.ranking.scored_until.tolist() == [24, 0], "the second is not due"
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
    before, context.lens = (400 - BLOCK) // BLOCK, [400 + 2 * BLOCK, 330]
    for layer in context.choose(POLICIES["text"])[:, 0].tolist():
        assert layer == [5, before, before + 1]


def test_a_row_of_the_batch_may_come_back_as_another_request(context):
    context.point_at(0, 5)
    context.choose(POLICIES["text"])
    context.point_at(0, 17)
    context.rounds[0] = 0
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
    starts = torch.tensor([0, *np.cumsum(query_lens)]).int()
    queries = torch.randn(sum(query_lens), HEADS, SIZE)
    window.capture(1, queries, starts)
    last = window.last_verified(starts, torch.tensor(rejected))
    for row, (n, lost) in enumerate(zip(query_lens, rejected)):
        kept = min(n, WINDOW)
        assert last[row] == kept - lost - 1
        assert torch.equal(window.kept[1, row, :kept], queries[starts[row + 1] - kept : starts[row + 1]])
