"""Whatever std raises in its own part of a step, requests go on in plain decoding; it is logged once, and counted."""

import logging

import pytest
import torch
from helpers import Acceptance, greedy, runner_of, scheduler_of, speculator_of, std, token_prompts
from vllm import SamplingParams

from vllm_std.control import pause
from vllm_std.draft import speculator as drafting

pytestmark = [pytest.mark.engine, pytest.mark.versions]
PROMPTS = token_prompts([45, 300], seed=2)


def fails(plain, turns=(2, 5)):
    """The same, raising an error of its own at these calls; how often it has raised stands in `raised`."""

    def wrapper(*args, **kwargs):
        wrapper.calls += 1
        if wrapper.calls in turns:
            wrapper.raised += 1
            raise RuntimeError("injected")
        return plain(*args, **kwargs)

    wrapper.calls = wrapper.raised = 0
    return wrapper


def places(llm) -> dict:
    """(object, name of its method) of every part of a round, and what a fault there is counted as."""
    speculator, scheduler = speculator_of(llm), scheduler_of(llm)
    return {
        "summaries": (speculator.std.selector, "begin", "round"),
        "selection": (speculator.std.selector, "select", "round"),
        "inputs of a draft": (speculator, "_begin", "round"),
        "a draft step": (speculator, "_run_model", "round"),
        "sampling a draft": (speculator, "sample_draft", "round"),
        "queries of the target's own pass": (speculator.std.queries, "capture", "round"),
        "the choice of a length": (scheduler.std, "choose", "scheduler"),
        "outcomes": (scheduler.std.controller, "observe", "scheduler"),
        "step times": (scheduler.std, "measure", "scheduler"),
        "statistics": (scheduler.std.stats, "count", "scheduler"),
    }


@pytest.fixture
def no_rest(monkeypatch):
    """Drafting goes on at once after a fault."""
    monkeypatch.setattr(pause, "LONGEST", 0)


@pytest.fixture
def engine(engines, plain, models):
    """An engine with std, and what plain vLLM answers to PROMPTS."""
    expected = plain(models("llama"), PROMPTS, 48)
    return engines(models("llama"), std()), expected


@pytest.fixture
def errors(engine, monkeypatch):
    """What std logs of faults; an engine's start would take the handler away."""
    records, handler = [], logging.Handler(logging.ERROR)
    monkeypatch.setattr(handler, "emit", records.append)
    monkeypatch.setattr(logging.getLogger("vllm.std"), "handlers", [handler])
    return records


def counted(llm) -> dict[str, float]:
    return {m.labels["where"]: m.value for m in llm.get_metrics() if m.name == "vllm:std_faults"}


NAMES = [
    "summaries", "selection", "inputs of a draft", "a draft step", "sampling a draft",
    "queries of the target's own pass", "the choice of a length", "outcomes", "step times", "statistics",
]  # fmt: skip


@pytest.mark.supports("faults of std's own")
@pytest.mark.parametrize("name", NAMES)
def test_a_fault_costs_no_request_and_no_token(engine, monkeypatch, no_rest, errors, name):
    llm, expected = engine
    speculator_of(llm).std.faults.logged.clear()
    scheduler_of(llm).std.faults.logged.clear()
    owner, method, where = places(llm)[name]
    broken = fails(getattr(owner, method))
    before = counted(llm)
    with monkeypatch.context() as patch, Acceptance(llm) as seen:
        patch.setattr(owner, method, broken)
        assert greedy(llm, PROMPTS, 48) == expected
    assert broken.raised == 2, "both faults happened"
    assert counted(llm)[where] - before[where] >= 1
    assert len(errors) == 1, "the same cause is logged once"
    assert "injected" in errors[0].getMessage() and errors[0].exc_info
    assert seen.accepted > 0, "drafting went on afterwards"
    with Acceptance(llm) as after:
        assert greedy(llm, PROMPTS, 8) == [tokens[:8] for tokens in expected]
    assert after.accepted > 0


@pytest.mark.supports("faults of std's own")
@pytest.mark.parametrize("method", ["begin", "select"])
def test_a_round_that_always_fails_is_plain_decoding(engine, monkeypatch, method):
    """Drafting rests, each time twice as long: so the steps that verify nothing become rare."""
    llm, expected = engine
    monkeypatch.setattr(scheduler_of(llm).std, "pause", pause.Pause())
    broken = fails(getattr(speculator_of(llm).std.selector, method), range(1000))
    with monkeypatch.context() as patch:
        patch.setattr(speculator_of(llm).std.selector, method, broken)
        assert greedy(llm, PROMPTS, 48) == expected
    assert 2 <= broken.raised <= 8


@pytest.mark.parametrize(
    "params", [dict(temperature=0.8), dict(temperature=1.0, top_k=3), dict(temperature=0)], ids=str
)
def test_drafts_of_a_failed_round_are_drawn_with_certainty(engine, monkeypatch, no_rest, params):
    """What verification takes for their distribution is what they were drawn from: else sampling would be biased."""
    llm, _ = engine
    speculator, runner, certain = speculator_of(llm), runner_of(llm), []
    original = drafting.placeholders

    def placeholders(speculator, inputs):
        drafts = original(speculator, inputs)
        shares = speculator.draft_logits[inputs.input_batch.idx_mapping.long()].float().softmax(-1)
        certain.append(shares.gather(-1, drafts[..., None]))
        assert runner.req_states.draft_tokens.shape[1] == drafts.shape[1]
        return drafts

    monkeypatch.setattr(drafting, "placeholders", placeholders)
    monkeypatch.setattr(speculator, "_run_model", fails(speculator._run_model, (2, 5, 9)))
    sampling = SamplingParams(max_tokens=24, seed=1, ignore_eos=True, **params)
    outputs = llm.generate(PROMPTS, sampling, use_tqdm=False)
    assert all(len(out.outputs[0].token_ids) == 24 for out in outputs)
    assert len(certain) == 3 and all(torch.equal(share, torch.ones_like(share)) for share in certain)
