"""Random schedules: whatever arrives, is aborted or preempted when, greedy tokens are plain vLLM's, and no block leaks.

300 and more in a usual run, always the same ones; VLLM_STD_SCHEDULES=N takes N new ones for each kind of engine.
"""

import os
from collections import Counter
from dataclasses import dataclass

import pytest
from conftest import Acceptance, keep_async, scheduler_of, std, token_prompts
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from vllm import SamplingParams

from vllm_std.control import Choice

pytestmark = pytest.mark.fast
ROOM = dict(max_model_len=320, max_num_seqs=4)
EXAMPLES = int(os.environ.get("VLLM_STD_SCHEDULES", 0))

SHARED = token_prompts([150], seed=21)[0]["prompt_token_ids"]
PROMPTS = [SHARED[:cut] + tail["prompt_token_ids"] for cut, tail in
           zip((0, 0, 150, 128, 64, 0, 150, 33), token_prompts([1, 40, 9, 70, 31, 260, 2, 95], seed=22))]  # fmt: skip
KINDS = [
    {}, dict(max_tokens=1), dict(max_tokens=5), dict(max_tokens=14, frequency_penalty=1.5),
    dict(logit_bias={668: 70.0}, ignore_eos=False, min_tokens=3), dict(stop_token_ids=list(range(200, 240))),
    dict(extra_args={"std": False}), dict(logprobs=2, repetition_penalty=1.4),
]  # fmt: skip
POOL = [(prompt, SamplingParams(**dict(temperature=0, max_tokens=10, ignore_eos=True) | kind))
        for prompt in PROMPTS for kind in KINDS]  # fmt: skip
COMPANY = [(PROMPTS[i], SamplingParams(temperature=0.9, top_p=0.9, min_p=0.01, seed=i, max_tokens=8)) for i in range(4)]
ALL = POOL + COMPANY


@dataclass(frozen=True)
class Arrival:
    request: int  # of ALL
    step: int
    abort: int | None  # so many steps later


ARRIVALS = st.builds(
    Arrival, st.integers(0, len(ALL) - 1), st.integers(0, 6), st.one_of(st.none(), st.none(), st.integers(2, 9))
)
SCHEDULES = st.tuples(
    st.lists(ARRIVALS, min_size=2, max_size=5), st.lists(st.integers(0, 3), min_size=1, max_size=5), st.booleans()
)

ENGINES = {
    "a tiny cache and tiny chunks": (std(), dict(max_num_batched_tokens=64, num_gpu_blocks_override=11)),
    "scored once": (std(selection="text"), dict(num_gpu_blocks_override=11)),
    "no prefix cache": (std(refresh=2), dict(enable_prefix_caching=False, num_gpu_blocks_override=11)),
    "async scheduling": (std(), dict(async_scheduling=True, num_gpu_blocks_override=11)),
}


@pytest.fixture(scope="module")
def expected(engines, models):
    """Tokens and reason to end of each request of POOL, alone with plain vLLM."""
    llm = engines(models("llama"), None, **ROOM)
    prompts, params = zip(*[({"prompt_token_ids": prompt}, params.clone()) for prompt, params in POOL])
    outputs = llm.generate(list(prompts), list(params), use_tqdm=False)  # which changes the parameters
    return [(list(o.outputs[0].token_ids), o.outputs[0].finish_reason) for o in outputs]


class Driver:
    """Runs schedules on an engine, and counts what happened in them."""

    def __init__(self, llm, expected, monkeypatch):
        self.engine, self.scheduler, self.expected = llm.llm_engine, scheduler_of(llm), expected
        self.pool = self.scheduler.kv_cache_manager.block_pool
        self.free, self.seen, self.turn, self.lengths, self.serial = self.pool.get_num_free_blocks(), Counter(), 0, [0], 0
        monkeypatch.setattr(self.scheduler, "choose", self.choose)

    def choose(self, requests, kv) -> Choice:
        self.turn += 1
        return Choice(self.lengths[self.turn % len(self.lengths)], "fixed", 1.0, frozenset(self.scheduler.opted_out))

    def run(self, arrivals, lengths, reset) -> None:
        self.lengths, self.got, self.ended = lengths, {}, set()
        self.serial += 1
        try:
            self._run({f"{self.serial}-{i}": arrival for i, arrival in enumerate(arrivals)})
        finally:
            self.engine.abort_request([f"{self.serial}-{i}" for i in range(len(arrivals))])
            while self.engine.has_unfinished_requests():
                self.engine.step()
        for _ in range(2):  # with async scheduling a step may still be on its way
            self.engine.step()
        assert not self.scheduler.running and not self.scheduler.waiting
        assert self.pool.get_num_free_blocks() == self.free, "no block has leaked"
        if reset:
            assert self.engine.reset_prefix_cache()
        self._check({f"{self.serial}-{i}": arrival for i, arrival in enumerate(arrivals)})

    def _run(self, arrivals: dict[str, Arrival]) -> None:
        for step in range(400):
            for request, arrival in arrivals.items():
                if arrival.step == step:
                    prompt, params = ALL[arrival.request]
                    self.engine.add_request(request, {"prompt_token_ids": prompt}, params.clone())
                elif arrival.abort and arrival.step + arrival.abort == step and request not in self.ended:
                    self.engine.abort_request([request])
                    self.seen["aborted"] += 1
            for out in self.engine.step() if self.engine.has_unfinished_requests() else ():
                self.got[out.request_id] = out.outputs[0]
                if out.finished:
                    self.ended.add(out.request_id)
            if step > 15 and not self.engine.has_unfinished_requests():
                return
        raise AssertionError("requests do not come to an end")

    def _check(self, arrivals: dict[str, Arrival]) -> None:
        for request, arrival in arrivals.items():
            if arrival.request >= len(POOL) or request not in self.got:
                continue
            tokens, reason = self.expected[arrival.request]
            got = list(self.got[request].token_ids)
            if request in self.ended and self.got[request].finish_reason != "abort":
                assert (got, self.got[request].finish_reason) == (tokens, reason)
            else:
                assert got == tokens[: len(got)]
                self.seen["aborted in the middle"] += 0 < len(got) < len(tokens)
            self.seen["compared"] += 1


def metric(llm, name: str) -> int:
    (value,) = [m.value for m in llm.get_metrics() if m.name == f"vllm:{name}"]
    return value


def holds_for(driver: Driver, examples: int, **options) -> None:
    @settings(
        max_examples=EXAMPLES or examples, derandomize=not EXAMPLES, deadline=None, database=None,
        suppress_health_check=list(HealthCheck), **options,
    )  # fmt: skip
    @given(SCHEDULES)
    def holds(schedule):
        driver.seen["schedules"] += 1
        driver.run(*schedule)

    holds()


@pytest.mark.supports(
    "random schedules: arrivals, aborts, preemption, chunks, draft lengths (hypothesis)", "aborts in the middle of drafts"
)
@pytest.mark.parametrize("kind", ENGINES)
def test_greedy_tokens_are_plain_vllms_under_any_schedule(engines, models, expected, monkeypatch, kind):
    config, options = ENGINES[kind]
    if kind == "async scheduling":
        keep_async(monkeypatch)
    llm = engines(models("llama"), config, **ROOM | options)
    driver = Driver(llm, expected, monkeypatch)
    preempted, hits = metric(llm, "num_preemptions"), metric(llm, "prefix_cache_hits")
    with Acceptance(llm) as seen:
        holds_for(driver, 75)
    preempted, hits = metric(llm, "num_preemptions") - preempted, metric(llm, "prefix_cache_hits") - hits
    print(f"\n{kind}: {dict(driver.seen)}, preempted {preempted}, hits {hits}, {seen.accepted} of {seen.drafted} drafts")
    assert driver.seen["schedules"] >= 75 or EXAMPLES
    assert min(preempted, driver.seen["aborted in the middle"], seen.accepted, seen.drafted - seen.accepted) > 0
    assert (hits > 0) == (kind != "no prefix cache")


def test_a_sampler_that_accepts_wrongly_is_caught(engines, models, expected, monkeypatch):
    """vLLM's `synthetic` verification, which accepts every draft."""
    lossy = std(rejection_sample_method="synthetic", synthetic_acceptance_rates=[1, 1, 1])
    llm = engines(models("llama"), lossy, **ROOM)
    with pytest.raises(AssertionError):
        holds_for(Driver(llm, expected, monkeypatch), 20, phases=[Phase.generate])
