"""Sampled output: with std, tokens are distributed as plain vLLM's, and probabilistic drafts keep acceptance up.

Two-sample chi-square tests over the second and the third sampled token (the first one comes before any draft), N
answers on each side, each with its own seed. The last tests state what they can see, and show a sampler they catch.
"""

import collections

import numpy as np
import pytest
from conftest import Acceptance, std, token_prompts
from scipy import stats
from vllm import SamplingParams

N = 640
LEVEL = 1e-3  # of each test: a right sampler fails one run in a thousand, and the seeds are fixed
PROMPT = token_prompts([300], seed=7)[0]
SAMPLING = {
    "temperature": dict(temperature=0.25),
    "top-k and top-p": dict(temperature=1.0, top_k=3, top_p=0.95),
}


def sample(llm, first_seed: int, **params) -> tuple[np.ndarray, float | None]:
    """[N, 2] second and third tokens of N answers, and the accepted share of drafts."""
    seeds = range(first_seed, first_seed + N)
    params = [SamplingParams(max_tokens=3, seed=seed, ignore_eos=True, **params) for seed in seeds]
    with Acceptance(llm) as seen:
        outputs = llm.generate([PROMPT] * N, params, use_tqdm=False)
    return np.array([list(out.outputs[0].token_ids[1:]) for out in outputs]), seen.rate


def counts(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """[2, categories] of one token position; tokens seen fewer than 60 times in both samples together share one."""
    both = collections.Counter(ours.tolist()) + collections.Counter(theirs.tolist())
    often = sorted(token for token, count in both.items() if count >= 60)
    table = np.array([[(side == token).sum() for token in often] for side in (ours, theirs)])
    rest = N - table.sum(1, keepdims=True)
    return np.hstack([table, rest]) if rest.sum() >= 60 else table


def p_value(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Of both positions together (Bonferroni)."""
    return min(1.0, 2 * min(stats.chi2_contingency(counts(*pair)).pvalue for pair in zip(ours.T, theirs.T)))


def power(shares: np.ndarray, moved: float) -> float:
    """Chance to see a sampler that gives a share `moved` of all answers the rarest of these tokens instead."""
    shifted = shares * (1 - moved) + moved * np.eye(len(shares))[shares.argmin()]
    noncentrality = N / 2 * ((shifted - shares) ** 2 / shares).sum()
    return stats.ncx2.sf(stats.chi2.isf(LEVEL / 2, len(shares) - 1), len(shares) - 1, noncentrality)


@pytest.fixture(scope="module")
def plain_samples(engines, models):
    llm = engines(models("llama"), max_num_seqs=64)
    return {name: sample(llm, 0, **params)[0] for name, params in SAMPLING.items()}


@pytest.fixture(scope="module")
def std_samples(engines, models, plain_samples):
    llm = engines(models("llama"), std(num_speculative_tokens=2, selection="random", top_k=224), max_num_seqs=64)
    return {name: sample(llm, 10**6, **params) for name, params in SAMPLING.items()}


@pytest.mark.parametrize("name", SAMPLING)
def test_tokens_are_distributed_as_plain_vllms(plain_samples, std_samples, name):
    ours, rate = std_samples[name]
    print(f"\n{name}: p = {p_value(ours, plain_samples[name]):.3f}, acceptance {rate:.2f}")
    assert p_value(ours, plain_samples[name]) > LEVEL
    assert 0 < rate < 1, "both accepted and rejected drafts are in the sample"


def test_the_tests_have_power(plain_samples):
    """They see 10 % of answers moved to one token in nine of ten runs and more, at either position."""
    for name, tokens in plain_samples.items():
        for position in (0, 1):
            shares = counts(tokens[:, position], tokens[:, position])[0] / N
            print(f"\n{name}, position {position + 2}: power against 10 % moved: {power(shares, 0.1):.3f}")
            assert power(shares, 0.1) > 0.9


def test_a_sampler_that_accepts_every_draft_is_caught(engines, models, plain_samples):
    """vLLM's `synthetic` verification at rate 1, over the same drafts."""
    accept_all = dict(rejection_sample_method="synthetic", synthetic_acceptance_rates=[1, 1])
    llm = engines(models("llama"), std(num_speculative_tokens=2, selection="random", **accept_all), max_num_seqs=64)
    name = "top-k and top-p"
    p = p_value(sample(llm, 10**6, **SAMPLING[name])[0], plain_samples[name])
    print(f"\naccepting every draft: p = {p:.1e}")
    assert p < 1e-6


def test_acceptance_does_not_collapse_when_sampling(engines, models):
    """With a mask that keeps everything, drafts come from the target's own distribution: nearly all are accepted."""
    llm = engines(models("llama"), std(top_k=1024))
    params = [SamplingParams(temperature=1.0, max_tokens=24, seed=seed, ignore_eos=True) for seed in range(8)]
    with Acceptance(llm) as seen:
        llm.generate([PROMPT] * 8, params, use_tqdm=False)
    assert seen.rate > 0.99
    again = [list(o.outputs[0].token_ids) for o in llm.generate([PROMPT] * 8, params, use_tqdm=False)]
    once_more = [list(o.outputs[0].token_ids) for o in llm.generate([PROMPT] * 8, params, use_tqdm=False)]
    assert again == once_more, "a seed gives the same answer again"
