"""Sampled tokens have the target's own distribution: tested on long streams that would show 2 % of it moved.

A token's exact conditional distribution is known, because Transformers' model reads the same stream; so streams that
part at once can still be compared. Two kinds of statistics have a known law for a right sampler, whatever the contexts:
tokens in descending order of probability cut (0, 1) into intervals, and a uniform point of the interval of the sampled
token is itself uniform (chi-square); and how much more a token is some other sampler's than the target's, less what
that is in the mean, sums to a normal (one z for each wrong sampler in WRONG).
"""

from itertools import cycle
from typing import NamedTuple

import numpy as np
import pytest
import torch
from helpers import Acceptance, speculator_of, std, token_prompts
from scipy import stats
from transformers import LlamaForCausalLM
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind

pytestmark = pytest.mark.engine

REQUESTS, TOKENS, PLAIN_TOKENS = 64, 160, 960
LEVEL = 1e-3  # of each test: a right sampler fails one run in a thousand, and the seeds are fixed
MOVED = 0.02  # total variation of the wrong samplers that must be seen
PROMPTS = token_prompts([200] * REQUESTS, seed=7)
SAMPLING = {
    "temperature 0.5": dict(temperature=0.5),
    "temperature 1": dict(temperature=1.0),
    "temperature 1.5": dict(temperature=1.5),
    "top-k and top-p": dict(temperature=1.0, top_k=40, top_p=0.9),
}
SETTINGS = [list(SAMPLING)[number % len(SAMPLING)] for number in range(REQUESTS)]  # all of them in one batch
WRONG = ["most likely token", "flatter", "any token", "draft"]
REDRAWN, REPETITIONS = 8, 200
STD = dict(num_speculative_tokens=3, selection="streaming", top_k=160)


class Sample(NamedTuple):
    """Of each token: its point in (0, 1), its scores and their variances [tokens, WRONG], and where it came from."""

    points: np.ndarray
    scores: np.ndarray
    variances: np.ndarray
    place: np.ndarray  # within its round; 0 is the first
    setting: np.ndarray
    redrawn: np.ndarray  # [tokens, REDRAWN, right sampler and WRONG, point and scores]
    distance: np.ndarray  # [tokens, WRONG] total variation
    impossible: np.ndarray  # tokens of probability 0

    def of(self, chosen) -> "Sample":
        return Sample(*(field[chosen] for field in self))


def p_value(ours: Sample, theirs: Sample | None = None) -> float:
    """Of all statistics together (Bonferroni); ours against the exact law, or against another sample."""
    samples = [ours] if theirs is None else [ours, theirs]
    counts = [np.histogram(sample.points, 10, (0, 1))[0] for sample in samples]
    uniform = stats.chisquare(counts[0]) if theirs is None else stats.chi2_contingency(counts)
    means = [sample.scores.mean(0) for sample in samples]
    variance = sum(sample.variances.mean(0) / len(sample.points) for sample in samples)
    z = (means[0] - (0 if theirs is None else means[1])) / np.sqrt(variance)
    return min(1.0, (1 + len(z)) * min(uniform.pvalue, 2 * stats.norm.sf(abs(z)).min()))


# ------------------------------------------------------------ streams


def stream(llm, tokens: int, first_seed: int | None) -> list[tuple[list[int], list[int]]]:
    """Of each request, its tokens and the place of each in its round. No seed: from the engine's own generator."""
    engine, seen = llm.llm_engine, {number: ([], []) for number in range(REQUESTS)}
    for number, name in enumerate(SETTINGS):
        own = SAMPLING[name] if first_seed is None else SAMPLING[name] | {"seed": first_seed + number}
        deltas = SamplingParams(max_tokens=tokens, ignore_eos=True, output_kind=RequestOutputKind.DELTA, **own)
        engine.add_request(str(number), PROMPTS[number], deltas)
    while engine.has_unfinished_requests():
        for out in engine.step():
            new = out.outputs[0].token_ids
            seen[int(out.request_id)][0].extend(new)
            seen[int(out.request_id)][1].extend(range(len(new)))
    return list(seen.values())


def probabilities(logits: torch.Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0) -> torch.Tensor:
    """[tokens, vocab], as vLLM defines these parameters."""
    probs, order = (logits.double() / temperature).softmax(-1).sort(-1, descending=True)
    if top_k:
        probs[:, top_k:] = 0
    probs /= probs.sum(-1, keepdim=True)
    probs[probs.cumsum(-1) - probs >= top_p] = 0  # kept: until the sum reaches top_p
    probs /= probs.sum(-1, keepdim=True)
    return torch.zeros_like(probs).scatter(-1, order, probs)


def near(length: int) -> torch.Tensor:
    """Attention mask that a draft may have: the first block and the last 64 tokens."""
    row, column = torch.arange(length)[:, None], torch.arange(length)
    kept = (column <= row) & ((column > row - 64) | (column < 32))
    return torch.where(kept, 0.0, torch.finfo(torch.float32).min)[None, None]


def wrong_samplers(probs: torch.Tensor, draft: torch.Tensor) -> torch.Tensor:
    """[WRONG, tokens, vocab] probabilities; tokens that the target never says stay so, except in a draft."""
    top = torch.zeros_like(probs).scatter(-1, probs.argmax(-1, keepdim=True), 1.0)
    kinds = torch.stack([top, probs ** (1 / 1.25), (probs > 0).double(), draft])
    return kinds / kinds.sum(-1, keepdim=True)


@torch.inference_mode()
def read(model, number: int, tokens: list[int], places: list[int], redraw: bool) -> Sample:
    ids = torch.tensor([PROMPTS[number]["prompt_token_ids"] + tokens])
    setting = SAMPLING[SETTINGS[number]]
    logits = [model(ids, m, logits_to_keep=len(tokens) + 1).logits[0, :-1] for m in (None, near(ids.shape[1]))]
    probs = probabilities(logits[0], **setting)
    wrong = wrong_samplers(probs, probabilities(logits[1], **setting))
    score = torch.nan_to_num((wrong - probs) / (wrong + probs))
    mean = (probs * score).sum(-1, keepdim=True)
    variances = (probs * (score - mean) ** 2).sum(-1).T
    order = probs.argsort(-1, descending=True)
    after = torch.zeros_like(probs).scatter(-1, order, probs.gather(-1, order).cumsum(-1))

    def seen(drawn: torch.Tensor) -> torch.Tensor:  # drawn: [tokens, any]
        points = after.gather(-1, drawn) - torch.rand(drawn.shape) * probs.gather(-1, drawn)
        return torch.stack([points, *((s - m).gather(-1, drawn) for s, m in zip(score, mean))], -1)

    said = torch.tensor(tokens)[:, None]
    own = seen(said)[:, 0]
    again = [seen(p.multinomial(REDRAWN if redraw else 1, replacement=True)) for p in (probs, *wrong)]
    distance, none = (wrong - probs).abs().sum(-1).T / 2, probs.gather(-1, said)[:, 0] == 0
    fields = own[:, 0], own[:, 1:], variances, places, [SETTINGS[number]] * len(tokens), torch.stack(again, 2)
    return Sample(*map(np.asarray, (*fields, distance, none)))


@pytest.fixture(scope="module")
def measure(models):
    """measure(streams): the Sample of all their tokens."""
    model = LlamaForCausalLM.from_pretrained(models("llama"), dtype=torch.float32).eval()

    def samples(streams, redraw=False) -> Sample:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            made = [read(model, number, *of, redraw) for number, of in enumerate(streams)]
        return Sample(*map(np.concatenate, zip(*made)))

    return samples


@pytest.fixture(scope="module")
def plain_sample(engines, models, measure):
    """Of Model Runner V1, whose sampler shares no code with that of V2, and which takes a tenth of the time on CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_USE_V2_MODEL_RUNNER", "0")
        llm = engines(models("llama"), max_num_seqs=REQUESTS, seed=11)
        return measure(stream(llm, PLAIN_TOKENS, None))  # V1 on CPU fails with seeds of requests


@pytest.fixture(scope="module")
def std_sample(engines, models, measure, plain_sample):
    llm = engines(models("llama"), std(**STD), max_num_seqs=REQUESTS)
    with Acceptance(llm) as seen:
        streams = stream(llm, TOKENS, first_seed=10**6)
    print(f"\nacceptance {seen.rate:.2f}")
    assert 0.2 < seen.rate < 0.8, "both accepted and rejected drafts are in the sample"
    return measure(streams, redraw=True)


# ------------------------------------------------------------ properties


@pytest.mark.supports("sampling: temperature, top-k, top-p (2 % of total variation would be seen)")
def test_tokens_have_the_targets_own_distribution(std_sample):
    assert not std_sample.impossible.any()
    print(f"\n{len(std_sample.points)} tokens: p = {p_value(std_sample):.3f}")
    assert p_value(std_sample) > LEVEL


@pytest.mark.parametrize("setting", SAMPLING)
def test_tokens_have_it_in_every_setting(std_sample, setting):
    assert p_value(std_sample.of(std_sample.setting == setting)) > LEVEL


@pytest.mark.parametrize("place", range(4))
def test_tokens_have_it_at_every_place_of_a_round(std_sample, place):
    """Drafted or not: that a place is reached depends on earlier tokens alone."""
    here = std_sample.of(std_sample.place == place)
    print(f"\nplace {place}, {len(here.points)} tokens: p = {p_value(here):.3f}")
    assert len(here.points) > 500 and p_value(here) > LEVEL


@pytest.mark.supports("sampling: temperature, top-k, top-p (2 % of total variation would be seen)")
def test_tokens_are_distributed_as_plain_vllms(std_sample, plain_sample):
    plain, both = p_value(plain_sample), p_value(std_sample, plain_sample)
    print(f"\n{len(plain_sample.points)} plain tokens: p = {plain:.3f}, against them p = {both:.3f}")
    assert plain > LEVEL and both > LEVEL and not plain_sample.impossible.any()


def test_tokens_have_it_with_proposals(engines, models, measure, monkeypatch):
    """Rounds of as many draft steps as drafts, and of fewer, whose missing drafts are proposals."""
    llm = engines(models("llama"), std(**STD, proposals=2), max_num_seqs=REQUESTS)
    state, turns, totals = speculator_of(llm).std, cycle([3, 1, 2]), np.zeros((2, 3), dtype=int)
    count = state.passes.count

    def counted() -> None:
        count()
        totals[:] += state.passes.totals.numpy()

    monkeypatch.setattr(state, "num_steps", lambda length: min(next(turns), length))
    monkeypatch.setattr(state.passes, "count", counted)
    with Acceptance(llm) as seen:
        sample = measure(stream(llm, TOKENS, first_seed=10**6))
    came_true, drafted = totals[0, :-1], totals[0, -1]
    print(
        f"\n{len(sample.points)} tokens: p = {p_value(sample):.3f}; {came_true} of {totals[1, :-1]} proposals came true"
    )
    assert not sample.impossible.any() and p_value(sample) > LEVEL
    assert came_true.all() and 0.1 < seen.rate and drafted < seen.drafted


def redraw(sample: Sample, rng, tokens: int, wrong: int = 0, share: float = 0.0) -> Sample:
    """Tokens of a right sampler in contexts of the sample, but a share of them from another (index into 1 + WRONG)."""
    rows, which = rng.integers(0, len(sample.points), tokens), rng.integers(0, REDRAWN, tokens)
    seen = sample.redrawn[rows, which, np.where(rng.random(tokens) < share, wrong, 0)]
    return sample.of(rows)._replace(points=seen[:, 0], scores=seen[:, 1:])


def power(sample: Sample, wrong: int, share: float, plain_tokens: int) -> tuple[float, float]:
    """Chance to be seen, by the exact law and against plain vLLM."""
    rng, found = np.random.default_rng(wrong), np.zeros(2)
    for _ in range(REPETITIONS):
        ours = redraw(sample, rng, len(sample.points), wrong, share)
        found += np.array([p_value(ours), p_value(ours, redraw(sample, rng, plain_tokens))]) < LEVEL
    return tuple(found / REPETITIONS)


def test_the_tests_see_two_percent_moved(std_sample, plain_sample):
    """Wrong tokens, as many as move a total variation of 2 %, are seen in nine of ten runs; right ones are not."""
    right = power(std_sample, 0, 0.0, len(plain_sample.points))
    print(f"\nright sampler: seen in {right[0]:.3f}, against plain {right[1]:.3f}")
    found = {}
    for index, name in enumerate(WRONG):
        share = MOVED / std_sample.distance[:, index].mean()
        found[name] = power(std_sample, index + 1, share, len(plain_sample.points))
        print(f"{name} in {share:.3f} of tokens: seen in {found[name][0]:.3f}, against plain {found[name][1]:.3f}")
    assert max(right) < 0.03
    assert min(min(pair) for pair in found.values()) > 0.9


def test_a_sampler_that_accepts_every_draft_is_caught(engines, models, measure):
    """vLLM's `synthetic` verification at rate 1, over the same drafts."""
    accept_all = dict(rejection_sample_method="synthetic", synthetic_acceptance_rates=[1] * 3)
    llm = engines(models("llama"), std(**STD, **accept_all), max_num_seqs=REQUESTS)
    streams = stream(llm, 64, first_seed=10**6)
    p = p_value(measure(streams))
    print(f"\naccepting every draft: p = {p:.1e}")
    assert p < 1e-6


def test_acceptance_does_not_collapse_when_sampling(engines, models):
    """With a mask that keeps everything, drafts come from the target's own distribution: nearly all are accepted."""
    llm = engines(models("llama"), std(top_k=1024))
    params = [SamplingParams(temperature=1.0, max_tokens=24, seed=seed, ignore_eos=True) for seed in range(8)]
    with Acceptance(llm) as seen:
        llm.generate(PROMPTS[:8], params, use_tqdm=False)
    assert seen.rate > 0.99
    again, once_more = (
        [list(out.outputs[0].token_ids) for out in llm.generate(PROMPTS[:8], params, use_tqdm=False)] for _ in range(2)
    )
    assert again == once_more, "a seed gives the same answer again"
