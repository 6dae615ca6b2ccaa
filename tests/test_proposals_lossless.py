"""With proposals greedy tokens are plain vLLM's, and drafts are those of one-token steps."""

import pytest
import torch
from helpers import ROOT, SMOLLM2, Acceptance, greedy, speculator_of, std, token_prompts
from tiny_models import SUPPORTED_VIDEO, noise_video, video_prompt

MIXED = token_prompts([45, 300, 1, 620, 97])


def decoded(llm, steps=None) -> tuple[list[list[int]], list]:
    """Greedy tokens of MIXED, and the drafts of each round; steps: draft steps of each round."""
    speculator, rounds = speculator_of(llm), []
    propose = speculator.propose

    def record(*args, **kwargs):
        speculator.std.planned_steps = steps
        drafts = propose(*args, **kwargs)
        rounds.append(drafts.tolist())
        return drafts

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speculator, "propose", record)
        return greedy(llm, MIXED), rounds


@pytest.mark.engine
@pytest.mark.versions
def test_drafts_are_those_of_one_token_steps(engines, plain, models):
    expected = plain(models("llama"), MIXED)
    without = decoded(engines(models("llama"), std(num_speculative_tokens=5)))
    assert without[0] == expected
    assert decoded(engines(models("llama"), std(num_speculative_tokens=5, proposals=3))) == without


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.engine
@pytest.mark.versions
def test_fewer_steps_than_drafts(engines, plain, models, steps):
    expected = plain(models("llama"), MIXED)
    assert decoded(engines(models("llama"), std(num_speculative_tokens=5, proposals=3)), steps)[0] == expected


@pytest.mark.parametrize("name", ["ministral", "gemma3_text", "qwen2_5_vl", "llava_onevision"])
@pytest.mark.engine
def test_with_windows_and_videos(engines, plain, models, name):
    """A mask that keeps everything drafts what the target says: a wrong position or length would cost drafts."""
    prompts = MIXED
    if name in SUPPORTED_VIDEO:
        prompts = [video_prompt(name, noise_video(48, seed)) for seed in range(2)] + MIXED[:2]
    expected = plain(models(name), prompts)
    llm = engines(models(name), std(num_speculative_tokens=5, top_k=1024, proposals=2))
    with Acceptance(llm) as seen:
        assert greedy(llm, prompts) == expected
    assert seen.rate == 1.0


@pytest.mark.engine
def test_up_to_the_longest_context(engines, plain, models):
    prompts = token_prompts([100, 120, 95])
    room = dict(max_model_len=128)
    expected = plain(models("llama"), prompts, 40, **room)
    llm = engines(models("llama"), std(num_speculative_tokens=5, proposals=3), **room)
    assert greedy(llm, prompts, 40) == expected and not speculator_of(llm).std.faults.logged


@pytest.mark.engine
def test_real_text(engines, plain):
    """SmolLM2 repeats names and phrases of the text, so rounds soon take fewer draft steps than drafts."""
    text = (ROOT / "tests/source_text.txt").read_text()
    prompts = [text[:1800] + "\nThe function above", text[600:2200]]
    expected = plain(SMOLLM2, prompts, 48)
    llm = engines(SMOLLM2, std(top_k=256, num_speculative_tokens=5, proposals=3))
    passes, planned, totals = speculator_of(llm).std.passes, [], torch.zeros(2, 4, dtype=torch.int64)
    count = passes.count

    def counted() -> None:
        count()
        planned.append(speculator_of(llm).std.planned_steps)
        totals.add_(passes.totals)

    with pytest.MonkeyPatch.context() as patch, Acceptance(llm) as seen:
        patch.setattr(passes, "count", counted)
        assert greedy(llm, prompts, 48) == expected
    print(f"\n{totals[0, -1] / totals[1, -1]:.2f} drafts a step, {totals.tolist()}, steps {planned}, {seen.rate:.2f}")
    assert planned[0] == 5 > planned[-1] and totals[0, -1] > 1.2 * totals[1, -1]
    metrics = {(m.name, m.labels.get("outcome")): m.value for m in llm.get_metrics() if "proposals" in m.name}
    assert metrics["vllm:std_proposals", "true"] >= totals[0, :-1].sum() > 0
