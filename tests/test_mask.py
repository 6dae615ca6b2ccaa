"""The block mask against a plain Python reading of its definition."""

import pytest
import torch

from vllm_std.mask import MaskShape

pytestmark = pytest.mark.fast

SHAPES = [MaskShape(16, 1, 4, 32), MaskShape(32, 1, 1, 0), MaskShape(16, 0, 7, 40), MaskShape(128, 2, 3, 64)]
LENGTHS = [1, 15, 16, 17, 100, 129, 640, 1000, 4096]


def kept_blocks(shape: MaskShape, scores: list[float], length: int) -> list[int]:
    """Sink, the best `top` of what lies between, and all from the recent window on, in increasing order."""
    first_recent = max(length - shape.recent, 0) // shape.block_size
    between = range(min(shape.sink, first_recent), first_recent)
    best = sorted(between, key=lambda block: -scores[block])[: shape.top]
    return [*range(min(shape.sink, first_recent)), *sorted(best), *range(first_recent, length // shape.block_size + 1)]


def random_case(shape: MaskShape, lengths: list[int], layers: int = 3):
    torch.manual_seed(0)
    columns = max(lengths) // shape.block_size + 3
    scores = torch.rand(layers, len(lengths), columns)
    block_table = torch.stack([torch.randperm(1000)[:columns] for _ in lengths]).int()
    return scores, block_table, torch.tensor(lengths)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("lengths", [[n] for n in LENGTHS] + [LENGTHS])
def test_table_holds_the_kept_blocks_in_order(shape, lengths):
    scores, block_table, length = random_case(shape, lengths)
    table = shape.table(shape.choose(scores, length), block_table, length, shape.width(draft_length=5))
    for layer in range(scores.shape[0]):
        for row, n in enumerate(lengths):
            blocks = kept_blocks(shape, scores[layer, row].tolist(), n)
            assert table[layer, row, : len(blocks)].tolist() == block_table[row, blocks].tolist()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_masked_length_counts_the_tokens_of_the_kept_blocks(shape):
    for n in LENGTHS:
        blocks = kept_blocks(shape, [0.0] * (n // shape.block_size + 1), n)
        masked = n - int(shape.dropped_tokens(torch.tensor([n])))
        assert masked == (len(blocks) - 1) * shape.block_size + n % shape.block_size
        assert masked <= shape.max_length


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_drafted_tail_continues_in_the_requests_own_blocks(shape):
    """The slots of gamma drafted tokens are where the masked table says the next tokens are."""
    gamma = 5
    scores, block_table, length = random_case(shape, LENGTHS)
    table = shape.table(shape.choose(scores, length), block_table, length, shape.width(gamma))
    for row, n in enumerate(LENGTHS):
        masked = n - int(shape.dropped_tokens(length)[row])
        for step in range(gamma):
            here, there = (masked + step) // shape.block_size, (n + step) // shape.block_size
            assert table[0, row, here] == block_table[row, there]
            assert (masked + step) % shape.block_size == (n + step) % shape.block_size


def test_a_context_not_longer_than_the_mask_is_kept_whole():
    shape = MaskShape.plan(top_k=512, sink=16, recent=64, block_size=16)
    length = torch.arange(1, 513)
    assert shape.dropped_tokens(length).max() == 0


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf, 0.0])
def test_senseless_scores_still_give_blocks_of_the_request(poison):
    shape, n = SHAPES[0], 1000
    scores, block_table, length = random_case(shape, [n])
    table = shape.table(shape.choose(torch.full_like(scores, poison), length), block_table, length, shape.width(5))
    assert set(table.flatten().tolist()) <= set(block_table[0].tolist())


@pytest.mark.parametrize("top_k,block_size,least", [(32, 32, 128), (96, 32, 128), (128, 128, 384)])
def test_a_budget_without_a_block_to_choose_is_refused(top_k, block_size, least):
    with pytest.raises(ValueError, match=f"top_k={top_k} .*blocks of {block_size} .*top_k >= {least}"):
        MaskShape.plan(top_k, sink=16, recent=64, block_size=block_size)
    assert MaskShape.plan(least, sink=16, recent=64, block_size=block_size).top == 1
