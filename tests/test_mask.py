"""The block mask, as the kernels make it, against a plain Python reading of its definition."""

import pytest
import torch
from pipelines import Pipeline, key_cache

from vllm_std.mask import MaskShape
from vllm_std.selection.batch import Pairs

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("way")]

SHAPES = [MaskShape(16, 1, 4, 32), MaskShape(32, 1, 1, 0), MaskShape(16, 0, 7, 40), MaskShape(128, 2, 3, 64)]
LENGTHS = [1, 15, 16, 17, 100, 129, 640, 1000, 4096]


def kept_blocks(shape: MaskShape, scores: list[float], length: int, budget: int | None = None) -> list[int]:
    """Sink, the best `budget` of what lies between, and all from the recent window on, in increasing order."""
    first_recent = max(length - shape.recent, 0) // shape.block_size
    between = range(min(shape.sink, first_recent), first_recent)
    best = sorted(between, key=lambda block: -scores[block])[: shape.top if budget is None else budget]
    return [*range(min(shape.sink, first_recent)), *sorted(best), *range(first_recent, length // shape.block_size + 1)]


def random_case(shape: MaskShape, lengths: list[int], layers: int = 3):
    torch.manual_seed(0)
    columns = max(lengths) // shape.block_size + 3
    scores = torch.rand(layers, len(lengths), columns)
    block_table = torch.stack([torch.randperm(1000)[:columns] for _ in lengths]).int()
    return scores, block_table, torch.tensor(lengths)


class Masks(Pipeline):
    """Requests in the rows of a batch, backwards in the slots of vLLM's request state; their keys do not matter."""

    def __init__(self, shape: MaskShape, block_table, layers=3, gamma=5):
        caches = torch.zeros(layers, 1, 1, shape.block_size, 16)
        super().__init__(shape, key_cache(caches, 16), block_table, heads=1, gamma=gamma, max_len=4096)
        self.slots = torch.arange(self.reqs).flip(0)
        self.tables.fill_(-1)

    def keep(self, scores, length) -> None:
        """Requests that have just been given scores, [layers, reqs, blocks]."""
        self.load(length, slots=self.slots)
        for layer, score in enumerate(scores):
            self.ranking.keep_top_k(score, self.batch, Pairs(self.reqs, layer * self.reqs, self.reqs))

    def filled(self, length):
        """([layers, reqs, width] tables, [reqs] tokens they hold)"""
        self.load(length, slots=self.slots)
        tables, seq_lens = self.fill()
        return tables, seq_lens - 1


def masked(shape: MaskShape, scores, block_table, length, gamma=5):
    """(tables, tokens they hold) of requests scored just now."""
    masks = Masks(shape, block_table, len(scores), gamma)
    masks.keep(scores, length)
    return masks.filled(length)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("lengths", [[n] for n in LENGTHS] + [LENGTHS])
def test_table_holds_the_kept_blocks_in_order(shape, lengths):
    scores, block_table, length = random_case(shape, lengths)
    table, _ = masked(shape, scores, block_table, length)
    for layer in range(scores.shape[0]):
        for row, n in enumerate(lengths):
            blocks = kept_blocks(shape, scores[layer, row].tolist(), n)
            assert table[layer, row, : len(blocks)].tolist() == block_table[row, blocks].tolist()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_masked_length_counts_the_tokens_of_the_kept_blocks(shape):
    scores, block_table, length = random_case(shape, LENGTHS)
    _, kept = masked(shape, scores, block_table, length)
    for n, tokens in zip(LENGTHS, kept.tolist()):
        blocks = kept_blocks(shape, [0.0] * (n // shape.block_size + 1), n)
        assert tokens == (len(blocks) - 1) * shape.block_size + n % shape.block_size
        assert tokens <= shape.max_length


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_drafted_tail_continues_in_the_requests_own_blocks(shape):
    """The slots of gamma drafted tokens are where the masked table says the next tokens are."""
    gamma = 5
    scores, block_table, length = random_case(shape, LENGTHS)
    table, kept = masked(shape, scores, block_table, length, gamma)
    for row, (n, tokens) in enumerate(zip(LENGTHS, kept.tolist())):
        for step in range(gamma):
            here, there = (tokens + step) // shape.block_size, (n + step) // shape.block_size
            assert table[0, row, here] == block_table[row, there]
            assert (tokens + step) % shape.block_size == (n + step) % shape.block_size


def test_a_context_not_longer_than_the_mask_is_kept_whole():
    shape = MaskShape.plan(top_k=512, sink=16, recent=64, block_size=16, max_model_len=4096)
    scores, block_table, length = random_case(shape, list(range(1, 513, 7)), layers=1)
    assert torch.equal(masked(shape, scores, block_table, length)[1], length)


def test_rows_that_do_not_draft_are_left_alone():
    shape = SHAPES[0]
    scores, block_table, _ = random_case(shape, [640, 1000])
    masks = Masks(shape, block_table)
    masks.batch.load(torch.tensor([0]), torch.tensor([640]), torch.tensor([0]), torch.tensor([[0], [0]]))
    seq_lens = torch.tensor([641, 0], dtype=torch.int32)
    masks.ranking.fill_tables(masks.tables, seq_lens, masks.batch, 2)
    assert (masks.tables == -1).all() and seq_lens.tolist() == [1, 0]


@pytest.mark.parametrize("share,floor", [(0.05, 0), (0.125, 256), (1.0, 0)])
def test_a_share_of_the_context_is_kept_and_no_less_than_the_floor(share, floor):
    shape = MaskShape.plan(share, sink=16, recent=32, block_size=16, max_model_len=4096, floor=floor)
    scores, block_table, length = random_case(shape, LENGTHS)
    table, _ = masked(shape, scores, block_table, length)
    for row, (n, budget) in enumerate(zip(LENGTHS, shape.budget(length).tolist())):
        tokens = (budget + shape.sink) * 16 + 32
        assert tokens - 16 < max(share * n, floor, 64) <= tokens, "sink, recent window and one block are the least"
        blocks = kept_blocks(shape, scores[0, row].tolist(), n, budget)
        assert table[0, row, : len(blocks)].tolist() == block_table[row, blocks].tolist()


def test_what_left_the_recent_window_since_the_scoring_takes_the_place_of_the_lowest_ranked():
    shape = MaskShape(16, sink=1, top=4, recent=32)
    masks = Masks(shape, torch.arange(64, dtype=torch.int32)[None], layers=1)
    scores = torch.zeros(1, 1, 64)
    scores[0, 0, [5, 9, 20, 3]] = torch.tensor([4.0, 3.0, 2.0, 1.0])
    masks.keep(scores, torch.tensor([640]))  # the recent window begins in block 38
    for length, expected in [
        (640, [3, 5, 9, 20]),
        (656, [5, 9, 20, 38]),
        (688, [5, 38, 39, 40]),
        (900, [50, 51, 52, 53]),
    ]:
        assert masks.filled(torch.tensor([length]))[0][0, 0, 1:5].tolist() == expected


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf, 0.0, -1.0])
def test_senseless_scores_still_give_blocks_of_the_request(poison):
    shape, n = SHAPES[0], 1000
    scores, block_table, length = random_case(shape, [n])
    table, _ = masked(shape, torch.full_like(scores, poison), block_table, length)
    assert set(table.flatten().tolist()) <= set(block_table[0].tolist())


@pytest.mark.parametrize("top_k,block_size,least", [(32, 32, 128), (96, 32, 128), (128, 128, 384)])
def test_a_budget_without_a_block_to_choose_is_refused(top_k, block_size, least):
    with pytest.raises(ValueError, match=f"top_k={top_k} .*blocks of {block_size} .*top_k >= {least}"):
        MaskShape.plan(top_k, sink=16, recent=64, block_size=block_size, max_model_len=4096)
    assert MaskShape.plan(least, sink=16, recent=64, block_size=block_size, max_model_len=4096).top == 1
