"""What scripts/bench/divergence.py counts, on made-up answers, and that the page shows its record."""

import json
import sys

import pytest
from helpers import ROOT

sys.path.insert(0, str(ROOT / "scripts/bench"))
import divergence  # noqa: E402

pytestmark = pytest.mark.unit
RECORD = json.loads((ROOT / "docs/records/divergence.json").read_text())["summary"]


def answers(*tokens: list[int], **more) -> dict:
    """A cell; its second choice at each position is the next token id, one behind in logprob."""
    candidates = [[[[token, -0.5], [token + 1, -1.5]] for token in answer] for answer in tokens]
    return {"tokens": list(tokens), "logprobs": candidates, "drafted": 0, "accepted": 0} | more


@pytest.mark.parametrize(
    "ours, place",
    [([1, 2, 3], None), ([9, 2, 3], 0), ([1, 2, 9], 2), ([1, 2], 2), ([1, 2, 3, 4], 3), ([9], 0), ([], 0)],
    ids=str,
)
def test_a_parting_is_the_first_token_that_differs_or_is_missing(ours, place):
    assert divergence.parting(ours, [1, 2, 3]) == place
    assert divergence.parting([1, 2, 3], ours) == place


def test_tokens_after_a_parting_do_not_count():
    row = divergence.row(answers([1, 2, 3, 4], [1, 9, 7, 8], [5]), answers([1, 2, 3, 4], [1, 2, 3, 4], [5, 6]))
    assert (row["prompts"], row["parted"], row["tokens"]) == (3, 2, 4 + 2 + 2)
    assert row["per_1000"] == 250.0


def test_the_interval_is_poissons():
    """None seen in n tokens: at most 3.69 / n, as the tables say; 10 seen: 4.80 to 18.39."""
    same = answers(*[[1] * 100] * 10)
    assert divergence.row(same, same)["interval"] == [0.0, 3.69]
    row = divergence.row(answers(*[[1] * 99 + [2]] * 10), same)
    assert row["parted"] == 10 and row["interval"] == [4.8, 18.39]


def test_the_gap_is_in_the_eyes_of_the_plain_engine():
    ours, theirs = answers([1, 3], [8, 2], [1], drafted=8, accepted=6), answers([1, 2], [1, 2], [1, 2])
    row = divergence.row(ours, theirs)
    assert (row["gap_median"], row["gap_max"], row["gaps_unknown"]) == (1.0, 1.0, 1)
    assert row["acceptance"] == 0.75 and row["parted"] == 3


def test_the_page_shows_what_was_recorded():
    """docs/exactness.md: partings in 1,000 tokens with their interval, and accepted drafts."""
    page = (ROOT / "docs/exactness.md").read_text()
    for name in ("plain, smaller batch", "std", "draft_model", "ngram"):
        row = RECORD[name]
        rate, low, high = (f"{value + 1e-9:.1f}" for value in (row["per_1000"], *row["interval"]))
        assert f"{rate} [{low}, {high}]" in page, name
    assert RECORD["std, float32"]["parted"] == 0 and f"0 of {RECORD['std, float32']['tokens']:,} tokens" in page


def test_a_record_keeps_the_table_and_not_the_answers():
    cells = {"plain": answers([1, 2], against=None), "std": answers([1, 3], against="plain")}
    raw = {"settings": {"model": "m"}, "cells": cells}
    assert json.loads(divergence.record(raw)) == {"settings": {"model": "m"}, "summary": divergence.summary(raw)}
