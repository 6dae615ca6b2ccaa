"""Sampled output: with std, tokens are distributed as plain vLLM's, and probabilistic drafts keep acceptance up.

A two-sample chi-square test over the second and third sampled tokens (the first one comes before any draft), N answers
on each side. `test_the_test_has_power` states what it can see and shows it failing for a sampler that accepts all.
"""

import collections

import numpy as np
import pytest
from conftest import Acceptance, std, token_prompts
from scipy import stats
from vllm import SamplingParams

N = 800
LEVEL = 1e-3  # of each test; a correct sampler fails one run in a thousand, and seeds are fixed
BINS = 8
PROMPT = token_prompts([300], seed=7)[0]
SAMPLING = {
    "temperature": dict(temperature=1.2),
    "top-k and top-p": dict(temperature=0.9, top_k=6, top_p=0.9),
}


def sample(llm, first_seed: int, **params) -> tuple[collections.Counter, float | None]:
    """(second, third) tokens of N answers, and the accepted share of drafts."""
    seeds = range(first_seed, first_seed + N)
    params = [SamplingParams(max_tokens=3, seed=seed, ignore_eos=True, **params) for seed in seeds]
    with Acceptance(llm) as seen:
        outputs = llm.generate([PROMPT] * N, params, use_tqdm=False)
    return collections.Counter(tuple(out.outputs[0].token_ids[1:]) for out in outputs), seen.rate


def p_value(ours: collections.Counter, theirs: collections.Counter) -> float:
    """Two-sample chi-square; pairs are binned so that each bin holds about the same share of all answers."""
    both = ours + theirs
    loads, bin_of = np.zeros(BINS), {}
    for pair, count in both.most_common():
        bin_of[pair] = int(loads.argmin())
        loads[bin_of[pair]] += count
    table = np.zeros((2, BINS))
    for row, counts in enumerate((ours, theirs)):
        for pair, count in counts.items():
            table[row, bin_of[pair]] += count
    return stats.chi2_contingency(table[:, table.sum(0) > 0]).pvalue


@pytest.fixture(scope="module")
def plain_samples(engines, models):
    llm = engines(models("llama"), max_num_seqs=128)
    return {name: sample(llm, 0, **params)[0] for name, params in SAMPLING.items()}


@pytest.fixture(scope="module")
def std_samples(engines, models, plain_samples):
    llm = engines(models("llama"), std(num_speculative_tokens=2, selection="random"), max_num_seqs=128)
    return {name: sample(llm, 10**6, **params) for name, params in SAMPLING.items()}


@pytest.mark.parametrize("name", SAMPLING)
def test_tokens_are_distributed_as_plain_vllms(plain_samples, std_samples, name):
    ours, rate = std_samples[name]
    print(f"\n{name}: p = {p_value(ours, plain_samples[name]):.3f}, acceptance {rate:.2f}, {len(ours)} different pairs")
    assert p_value(ours, plain_samples[name]) > LEVEL
    assert 0 < rate < 1, "both accepted and rejected drafts are in the sample"


def test_the_test_has_power(engines, models, plain_samples):
    """It sees 10 % of answers moved into one bin in more than 8 of 10 runs, and a sampler that accepts every draft
    (vLLM's `synthetic` verification at rate 1) for certain."""
    share = np.full(BINS, 1 / BINS)
    moved = share * 0.9 + np.eye(BINS)[0] * 0.1
    noncentrality = N / 2 * ((moved - share) ** 2 / share).sum()
    power = stats.ncx2.sf(stats.chi2.isf(LEVEL, BINS - 1), BINS - 1, noncentrality)
    print(f"\npower against 10 % of answers moved to one bin: {power:.3f}")
    assert power > 0.8
    accept_all = dict(rejection_sample_method="synthetic", synthetic_acceptance_rates=[1, 1])
    llm = engines(models("llama"), std(num_speculative_tokens=2, selection="random", **accept_all), max_num_seqs=128)
    name = "top-k and top-p"
    p = p_value(sample(llm, 10**6, **SAMPLING[name])[0], plain_samples[name])
    print(f"accepting every draft: p = {p:.1e}")
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
