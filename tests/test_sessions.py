"""Requests that are continued: sessions with streaming input get plain vLLM's tokens, turn by turn."""

import pytest
from helpers import keep_async, scheduler_of, std, token_prompts
from vllm import SamplingParams

pytestmark = [pytest.mark.engine, pytest.mark.versions]

TURNS = [prompt["prompt_token_ids"] for prompt in token_prompts([120, 50, 50, 33], seed=5)]
ROOM = dict(max_num_seqs=4, max_model_len=1024)


def ask(llm, lengths: list[int], queued: bool, **params) -> list[list[int]]:
    """Tokens of each turn of a session, as AsyncLLM.generate asks for them; queued: all turns are there at once."""
    engine, tokens = llm.llm_engine, [[] for _ in lengths]
    asked = [
        engine.input_processor.process_inputs(
            "session", {"prompt_token_ids": [*turn]}, SamplingParams(temperature=0, max_tokens=most, **params),
            ("generate",), resumable=True,
        )
        for turn, most in zip(TURNS, lengths)
    ]  # fmt: skip
    end = engine.input_processor.process_inputs(
        "session", {"prompt_token_ids": [0]}, SamplingParams(max_tokens=1), ("generate",)
    )
    waiting = [*asked, end]
    core, done = engine.engine_core, 0
    core.add_request(waiting.pop(0))
    while queued and waiting:
        core.add_request(waiting.pop(0))
    while done < len(lengths):
        for output in core.get_output().outputs:
            tokens[done] += output.new_token_ids
            done += output.finish_reason is not None
            if output.finish_reason is not None and waiting:
                core.add_request(waiting.pop(0))
    while waiting:
        core.add_request(waiting.pop(0))
    core.abort_requests(["session"])
    return tokens


ANSWERS = [[5, 5, 5], [2, 3, 4, 9], [1, 1, 1], [20, 7, 20, 6], [6, 12]]


@pytest.mark.supports("sessions with streaming input")
@pytest.mark.parametrize("queued", [False, True], ids=["turn by turn", "all turns at once"])
def test_each_turn_is_plain_vllms(engines, models, queued, monkeypatch):
    asked = [(lengths, params) for params in ({"ignore_eos": True}, {"stop_token_ids": list(range(100, 400))})
             for lengths in ANSWERS]  # fmt: skip
    plain = [ask(engines(models("llama"), None, **ROOM), lengths, queued, **params) for lengths, params in asked]
    llm = engines(models("llama"), std(), **ROOM)
    seen = []
    monkeypatch.setattr(
        scheduler_of(llm).std.controller, "observe", lambda request, drafted, accepted, steps: seen.append(accepted)
    )
    assert [ask(llm, lengths, queued, **params) for lengths, params in asked] == plain
    assert sum(seen) > 0


@pytest.mark.parametrize("queued", [False, True], ids=["turn by turn", "all turns at once"])
def test_with_async_scheduling(engines, models, queued, monkeypatch):
    keep_async(monkeypatch)
    plain = [
        ask(engines(models("llama"), None, seed=3, **ROOM), lengths, queued, ignore_eos=True) for lengths in ANSWERS
    ]
    llm = engines(models("llama"), std(), seed=3, **ROOM)
    assert [ask(llm, lengths, queued, ignore_eos=True) for lengths in ANSWERS] == plain
