"""Block ids of requests without content: each has what it needs in every KV cache group, and shares no block."""

from itertools import chain

import pytest

from vllm_std.patches.blocks import block_ids, tokens_that_fit

pytestmark = pytest.mark.unit
GROUPS = {
    "full": [(16, 0)],
    "full and windowed": [(16, 0), (16, 128)],
    "blocks of two sizes": [(32, 1024), (32, 1024), (16, 0)],
}
ROOM = 40


@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
@pytest.mark.parametrize("blocks", [60, 100, 1000])
def test_as_long_as_fits_does_fit(groups, blocks):
    context = tokens_that_fit(groups, blocks, ROOM)
    if context < 1:
        return
    for of_request in block_ids(groups, 3, context, ROOM):
        held = [[block for block in of_group if block] for of_group in of_request]
        assert sum(map(len, held)) <= blocks


@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
@pytest.mark.parametrize("context", [1, 100, 5000])
def test_what_a_window_sees_and_what_is_to_come_has_blocks_of_its_own(groups, context):
    requests = list(block_ids(groups, 3, context, ROOM))
    held = [block for block in chain.from_iterable(chain.from_iterable(requests)) if block]
    assert len(held) == len(set(held)) and min(held) > 0
    for of_request in requests:
        for (size, window), of_group in zip(groups, of_request):
            assert len(of_group) == -(-(context + ROOM) // size)
            first = max(0, context - window) if window else 0
            assert all(of_group[first // size :]), "blocks from the window on are there"
