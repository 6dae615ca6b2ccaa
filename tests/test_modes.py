"""Ways to run vLLM that are not its default: priorities, pauses, prompts that are embeddings, logits processors of the
operator's own. With std the answers are plain vLLM's."""

import pytest
import torch
from helpers import Acceptance, greedy, scheduler_of, std, token_prompts
from safetensors.torch import load_file
from vllm import SamplingParams
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor

pytestmark = [pytest.mark.engine, pytest.mark.versions]

PROMPTS = token_prompts([45, 300, 97, 200], seed=8)


def ask(llm, prompts, max_tokens: int, priorities=None, first: int = 0) -> None:
    """Add requests, named by their number from `first` on."""
    params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
    for number, prompt in enumerate(prompts):
        priority = priorities[number] if priorities else 0
        llm.llm_engine.add_request(str(first + number), prompt, params, priority=priority)


def finished(llm) -> dict[int, list[int]]:
    """Run to the end; the answers by number, in the order in which they ended."""
    engine, answers = llm.llm_engine, {}
    while engine.has_unfinished_requests():
        answers |= {int(out.request_id): list(out.outputs[0].token_ids) for out in engine.step() if out.finished}
    return answers


def preemptions(llm) -> int:
    (counted,) = [m.value for m in llm.get_metrics() if m.name == "vllm:num_preemptions"]
    return counted


@pytest.mark.supports("priority scheduling", "preemption and recompute")
def test_the_least_urgent_request_gives_way_and_resumes(engines, plain, models):
    """The KV cache is too small for all: vLLM takes blocks from the request of the lowest priority."""
    prompts = token_prompts([200, 220, 240, 260], seed=4)
    expected = plain(models("llama"), prompts, 64)
    llm = engines(models("llama"), std(), scheduling_policy="priority", num_gpu_blocks_override=34)
    with Acceptance(llm) as seen:
        ask(llm, prompts, 64, priorities=[2, 9, -1, 0])
        answers = finished(llm)
    assert [answers[number] for number in range(4)] == expected
    assert preemptions(llm) > 0 and list(answers)[-1] == 1, "first come, first served would end with another"
    assert 0 < seen.accepted < seen.drafted


@pytest.mark.supports("pause and resume of the scheduler")
@pytest.mark.parametrize("clear_cache", [False, True])
def test_nothing_is_lost_in_a_pause(engines, plain, models, clear_cache):
    """In the middle of drafts, their blocks kept or taken away; one request comes in the pause and one goes."""
    expected = plain(models("llama"), PROMPTS)
    llm = engines(models("llama"), std())
    core, begun = llm.llm_engine.engine_core.engine_core, []
    ask(llm, PROMPTS[:3], 32)
    while len(begun) < 3 or min(len(out.outputs[0].token_ids) for out in begun) < 8:
        begun = llm.llm_engine.step()
    assert any(request.spec_token_ids for request in scheduler_of(llm).running), "drafts wait to be verified"
    core.pause_scheduler("keep", clear_cache=clear_cache)
    assert core.is_scheduler_paused() and len(scheduler_of(llm).running) == (0 if clear_cache else 3)
    ask(llm, PROMPTS[3:], 32, first=3)
    llm.llm_engine.abort_request(["0"])
    assert not any(out.outputs[0].token_ids for _ in range(3) for out in llm.llm_engine.step())
    core.resume_scheduler()
    assert finished(llm) == {number: expected[number] for number in (1, 2, 3)}


def prompts_of_embeddings(folder) -> list[dict]:
    """Tokens; the same tokens as embeddings; embeddings that no token has; tokens again."""
    weights = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    same = weights[PROMPTS[1]["prompt_token_ids"]]
    noise = torch.randn(90, weights.shape[1], generator=torch.Generator().manual_seed(0)) * weights.std()
    return [PROMPTS[1], {"prompt_embeds": same}, {"prompt_embeds": noise}, PROMPTS[0]]


@pytest.mark.supports("prompt embeddings")
def test_prompts_that_are_embeddings(engines, models):
    folder, options = models("llama"), {"enable_prompt_embeds": True}
    prompts = prompts_of_embeddings(folder)
    expected = greedy(engines(folder, None, **options), prompts)
    assert expected[0] == expected[1] and expected[2] not in (expected[0], expected[3])
    llm = engines(folder, std(), **options)
    for _ in range(2):  # computed, and from the prefix cache
        with Acceptance(llm) as seen:
            assert greedy(llm, prompts) == expected
        assert 0 < seen.accepted < seen.drafted


class Apart(LogitsProcessor):
    """No token nearer than `apart` to the one before it, for requests that have it in their `extra_args`."""

    def __init__(self, vllm_config, req_states):
        self.apart = torch.zeros(req_states.max_num_reqs, dtype=torch.int64, device=req_states.device)

    def add_request(self, req_idx, sampling_params):
        asked = (sampling_params.extra_args or {}).get("apart", 0)
        self.apart[req_idx] = asked
        return asked > 0

    def apply(self, logits, ctx):
        distance = torch.arange(logits.shape[1], device=logits.device) - ctx.input_ids[:, None]
        return logits.masked_fill_(distance.abs() < self.apart[ctx.expanded_idx_mapping][:, None], -torch.inf)


@pytest.mark.supports("custom logits processors (Model Runner V2's)")
def test_a_logits_processor_sees_the_token_before_each_draft(engines, plain, models):
    """Requests that it is for, side by side with others; vLLM lets it see drafts as the tokens they would be."""
    params = [
        SamplingParams(temperature=0, max_tokens=32, ignore_eos=True, extra_args=args)
        for args in ({"apart": 40}, None, {"apart": 200}, {"apart": 0})
    ]

    def answers(llm):
        return [list(out.outputs[0].token_ids) for out in llm.generate(PROMPTS, params, use_tqdm=False)]

    without = plain(models("llama"), PROMPTS)
    expected = answers(engines(models("llama"), None, logits_processors=[Apart]))
    assert [a == b for a, b in zip(expected, without)] == [False, True, False, True]
    assert all(abs(a - b) >= 40 for a, b in zip(expected[0], expected[0][1:]))
    llm = engines(models("llama"), std(), logits_processors=[Apart])
    with Acceptance(llm) as seen:
        assert answers(llm) == expected
    assert 0 < seen.accepted < seen.drafted
