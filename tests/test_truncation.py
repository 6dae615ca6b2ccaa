"""Drafts leave out what a request's top-k, top-p and min-p leave out, so as many are accepted as could be."""

import pytest
import torch
from helpers import Acceptance, speculator_of, std, token_prompts
from vllm import SamplingParams

pytestmark = [pytest.mark.engine, pytest.mark.versions]

PROMPTS = token_prompts([300, 200, 250], seed=2)


def accepted(llm, **params) -> tuple[int, int, list]:
    """(drafted, accepted, tokens)"""
    wanted = SamplingParams(**dict(temperature=1.0, seed=5, max_tokens=40, ignore_eos=True) | params)
    with Acceptance(llm) as seen:
        outputs = llm.generate(PROMPTS, wanted, use_tqdm=False)
    return seen.drafted, seen.accepted, [output.outputs[0].token_ids for output in outputs]


@pytest.mark.parametrize("kept", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}, {"top_k": 5, "top_p": 1e-6}], ids=str)
def test_with_one_token_kept_as_many_drafts_are_accepted_as_greedily(engines, models, kept, monkeypatch):
    llm = engines(models("llama"), std(), seed=1)
    drafted, right, tokens = accepted(llm, temperature=0)
    assert (drafted, right, tokens) == accepted(llm, **kept)
    monkeypatch.setattr(speculator_of(llm).std, "truncation", None)
    drafted, few, same = accepted(llm, **kept)
    assert same == tokens and few / drafted < right / drafted / 2, "drafts with all tokens kept are mostly lost"


def test_requests_leave_out_each_its_own(engines, models):
    """Two that keep one token and a greedy one, in a batch and each alone."""
    llm = engines(models("llama"), std(), seed=1)
    kinds = [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 0, "top_p": 0.5}]
    params = [SamplingParams(**dict(temperature=1.0, max_tokens=24, ignore_eos=True) | kind) for kind in kinds]
    together = [out.outputs[0].token_ids for out in llm.generate(PROMPTS, params, use_tqdm=False)]
    alone = [llm.generate(*one, use_tqdm=False)[0].outputs[0].token_ids for one in zip(PROMPTS, params)]
    assert together == alone


@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0, 2.0])
@pytest.mark.parametrize("top_k, top_p, min_p", [(704, 1.0, 0.0), (7, 1.0, 0.0), (704, 0.4, 0.0), (30, 0.6, 0.1)])
def test_what_is_left_out_is_what_torch_leaves_out(engines, models, temperature, top_k, top_p, min_p):
    """Rows of a batch in any order; a row without a request is anything."""
    truncation = speculator_of(engines(models("llama"), std(), seed=1)).std.truncation
    logits = torch.randn(4, truncation.states.vocab_size, generator=torch.Generator().manual_seed(0)) * 3
    rows = torch.tensor([2, -1, 0, 5], dtype=torch.int32)
    temperatures = torch.ones(8)
    for name, none, value in (
        ("top_k", logits.shape[1], top_k),
        ("top_p", 1.0, top_p),
        ("min_p", 0.0, min_p),
    ):
        getattr(truncation, name).fill_(none)[2] = value
    temperatures[2] = temperature
    found = truncation.apply(logits.clone(), rows, temperatures)
    scaled = logits[0] / (temperature or 1.0)
    shares, order = scaled.softmax(0).sort(descending=True)
    kept = shares >= min_p * shares[0]
    shares = torch.where(kept, shares, 0.0) / shares[kept].sum()
    kept &= torch.arange(len(shares)) < top_k
    shares = torch.where(kept, shares, 0.0) / shares[kept].sum()
    kept &= (shares.cumsum(0) - shares < top_p) | (top_p == 1)
    left = set((found[0] > -torch.inf).nonzero().flatten().tolist())
    possible = set(order[kept & (scaled.softmax(0)[order] > 1e-7)].tolist())  # the others may be rounded to nothing
    assert possible <= left <= set(order[kept].tolist())
    assert torch.equal(found[0][list(left)], logits[0][list(left)]), "what is kept is as it was"
    assert torch.equal(found[[2, 3]], logits[[2, 3]])
