"""Acceptance on the bundled, trained video model: what selection is worth. Numbers are printed, bounds are asserted."""

import pytest
from helpers import SIGN_MODEL, Acceptance, greedy, speculator_of

from vllm_std.tools.acceptance.policies import POLICIES
from vllm_std.tools.demo.sign_video import SignVideo

ROOM = dict(max_model_len=2048, max_num_batched_tokens=2048)
TASKS = ("list", "range", "follow")
TOP_K = 192  # of about 1,840 tokens of context: 10.4 %
VIDEO = SignVideo(scenes=100, seed=11)
ASKED = {task: VIDEO.ask(task, sentences=6) for task in TASKS}


def acceptance(engines, policy: str, top_k: int = TOP_K) -> dict[str, float]:
    """Accepted share of drafted tokens by task, greedy, gamma 5; every answer must be right to the letter."""
    config = {"method": "std", "adaptive": False, "num_speculative_tokens": 5, "top_k": TOP_K, "recent": 32}
    llm = engines(SIGN_MODEL, config, **ROOM)
    speculator_of(llm).std.selector.change(POLICIES[policy], top_k=top_k)
    rates = {}
    for task, asked in ASKED.items():
        with Acceptance(llm) as seen:
            (tokens,) = greedy(llm, [VIDEO.prompt(asked["question"])], 200, stop_token_ids=[668])
        assert llm.get_tokenizer().decode(tokens, skip_special_tokens=True) == asked["answer"]
        rates[task] = seen.rate
    shown = " ".join(f"{task} {rate:.3f}" for task, rate in rates.items())
    print(f"\nacceptance, {policy}, K={top_k}: {shown}, mean {sum(rates.values()) / len(rates):.3f}")
    return rates


@pytest.fixture(scope="module")
def verify(engines):
    return acceptance(engines, "verify")


def mean(rates: dict[str, float]) -> float:
    return sum(rates.values()) / len(rates)


def test_verify_accepts_nine_drafts_in_ten(verify):
    assert mean(verify) >= 0.9


def test_summaries_lose_little_against_all_keys(engines, verify):
    assert mean(acceptance(engines, "exact")) - mean(verify) < 0.05


@pytest.mark.parametrize("policy", ["text", "streaming", "random"])
def test_verify_is_far_above_what_does_not_follow_the_answer(engines, verify, policy):
    assert mean(verify) - mean(acceptance(engines, policy)) > 0.3


def test_a_mask_as_long_as_the_context_drafts_what_the_target_says(engines):
    assert set(acceptance(engines, "verify", top_k=2048).values()) == {1.0}
