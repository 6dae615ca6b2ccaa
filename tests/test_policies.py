"""What each selection policy promises, over keys held in a plain tensor."""

import numpy as np
import pytest
import torch

from vllm_std.mask import MaskShape
from vllm_std.selection import POLICIES, Observation, QueryWindow

pytestmark = pytest.mark.fast

LAYERS, HEADS, KV_HEADS, SIZE, BLOCK, WINDOW = 2, 4, 2, 32, 16, 4
SHAPE = MaskShape(BLOCK, sink=1, top=3, recent=BLOCK)


class Context:
    """Two requests whose keys grow; `point_at` makes the next queries attend to one block."""

    def __init__(self, lengths):
        torch.manual_seed(0)
        self.lengths = lengths
        self.keys = torch.randn(LAYERS, len(lengths), 64 * BLOCK, KV_HEADS, SIZE)
        self.queries = torch.randn(LAYERS, len(lengths), WINDOW, HEADS, SIZE)

    def point_at(self, row: int, block: int) -> None:
        target = self.keys[:, row, block * BLOCK + 3].repeat_interleave(HEADS // KV_HEADS, 1)
        self.queries[:, row] = 3 * target[:, None]

    def seen(self, prompt_done=(False, False), drafting=(True, True)) -> Observation:
        rows = len(self.lengths)

        def keys(layer, blocks):
            paged = self.keys[layer].view(rows * 64, BLOCK, KV_HEADS, SIZE)
            return paged[blocks].transpose(1, 2)

        return Observation(
            queries=self.queries, num_queries=torch.full((rows,), WINDOW), length=torch.tensor(self.lengths),
            max_length=np.array(self.lengths), slots=torch.arange(rows), drafting=np.array(drafting),
            prompt_done=np.array(prompt_done), block_table=torch.arange(64 * rows).view(rows, 64), block_size=BLOCK,
            keys=keys, scales=[SIZE**-0.5] * LAYERS,
        )  # fmt: skip

    def chosen(self, policy, **kwargs) -> torch.Tensor:
        """[layers, requests, top] block indices."""
        seen = self.seen(**kwargs)
        return SHAPE.choose(policy.score(seen), seen.length)


def policy(name: str):
    return POLICIES[name](max_num_reqs=8, num_layers=LAYERS, top=SHAPE.sink + SHAPE.top, device=torch.device("cpu"))


@pytest.fixture
def context() -> Context:
    return Context([400, 330])


def test_verify_follows_the_queries(context):
    verify = policy("verify")
    for block in (5, 17, 9):
        context.point_at(0, block)
        context.point_at(1, block - 2)
        chosen = context.chosen(verify)
        assert (chosen[:, 0] == block).any(-1).all() and (chosen[:, 1] == block - 2).any(-1).all()


def test_text_is_decided_by_the_end_of_the_prompt(context):
    text = policy("text")
    context.point_at(0, 5)
    first = context.chosen(text, prompt_done=(True, True))
    assert (first[:, 0] == 5).any(-1).all()
    context.point_at(0, 17)
    assert torch.equal(context.chosen(text), first)


def test_text_keeps_what_was_generated_in_place_of_its_lowest_ranked(context):
    text = policy("text")
    context.point_at(0, 5)
    context.chosen(text, prompt_done=(True, True))
    context.lengths = [400 + 4 * BLOCK, 330]
    chosen = context.chosen(text)[:, 0]
    prompt_blocks, recent = 400 // BLOCK, (400 + 3 * BLOCK) // BLOCK
    assert all(set(range(prompt_blocks, recent)) <= set(layer.tolist()) for layer in chosen)


def test_a_row_of_the_batch_may_come_back_as_another_request(context):
    text = policy("text")
    context.point_at(0, 5)
    context.chosen(text, prompt_done=(True, True))
    context.point_at(0, 17)
    assert (context.chosen(text, prompt_done=(True, False))[:, 0] == 17).any(-1).all()


def test_streaming_keeps_the_latest_blocks(context):
    assert context.chosen(policy("streaming"))[0, 0].tolist() == [21, 22, 23]  # 24 opens the recent window


def test_random_draws_anew_for_each_layer_and_round(context):
    draws = [context.chosen(policy("random")) for _ in range(8)]
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
