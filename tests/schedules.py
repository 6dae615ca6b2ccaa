"""Schedules of requests, drawn by hypothesis, and the driver that runs them on an engine, one step after another."""

from collections import Counter
from dataclasses import dataclass, field

from helpers import scheduler_of, speculator_of, token_prompts
from hypothesis import strategies as st
from vllm import SamplingParams

from vllm_std.control import Choice

SHARED = token_prompts([150], seed=21)[0]["prompt_token_ids"]
PROMPTS = [SHARED[:cut] + tail["prompt_token_ids"] for cut, tail in
           zip((0, 0, 150, 128, 64, 0, 150, 33), token_prompts([1, 60, 5, 60, 29, 300, 36, 90], seed=22))]  # fmt: skip
KINDS = [
    {}, dict(max_tokens=1), dict(max_tokens=24), dict(max_tokens=14, frequency_penalty=1.5, presence_penalty=0.5),
    dict(logit_bias={668: 70.0}, ignore_eos=False, min_tokens=3), dict(stop_token_ids=list(range(200, 260))),
    dict(logprobs=2, repetition_penalty=1.4), dict(bad_words=[" a", "e"]),
    dict(max_tokens=12, extra_args={"std": False}),
]  # fmt: skip
POOL = [(prompt, SamplingParams(**dict(temperature=0, max_tokens=10, ignore_eos=True) | kind))
        for prompt in PROMPTS for kind in KINDS]  # fmt: skip
SAMPLED = [dict(temperature=0.9, seed=1), dict(top_p=0.8), dict(min_p=0.05, seed=2), dict(extra_args={"std": False})]
COMPANY = [(PROMPTS[i], SamplingParams(max_tokens=8, ignore_eos=True, **options)) for i, options in enumerate(SAMPLED)]
ALL = POOL + COMPANY
LAST_EVENT, LAST_STEP = 20, 500


@dataclass(frozen=True)
class Arrival:
    request: int  # of ALL
    step: int
    abort: int | None  # so many steps later


@dataclass(frozen=True)
class Schedule:
    arrivals: list[Arrival]
    lengths: list[int]  # of the drafts of each step, in turn
    warm: bool  # begins with the prefix cache that the last schedule has left
    reset: int | None  # the step at which the prefix cache is emptied, and whatever runs is preempted for it


ASKED = st.integers(0, len(POOL) - 1)
ARRIVALS = st.builds(
    Arrival, ASKED | ASKED | st.integers(0, len(ALL) - 1) | st.integers(len(POOL), len(ALL) - 1), st.integers(0, 5),
    st.none() | st.none() | st.integers(2, 10),
)  # fmt: skip
SCHEDULES = st.builds(
    Schedule, st.lists(ARRIVALS, min_size=1, max_size=6),
    st.lists(st.integers(0, 3) | st.integers(2, 3), min_size=1, max_size=5),
    st.booleans(), st.none() | st.none() | st.none() | st.integers(2, 10),
)  # fmt: skip


@dataclass
class Served:
    """A request on its way."""

    arrival: Arrival
    inside: str = ""  # what the engine's core calls it
    tokens: list[int] = field(default_factory=list)
    reason: str | None = None
    aborted: bool = False


class Driver:
    """Runs schedules on an engine and counts what happens; answers: (tokens, reason to end) for each of POOL."""

    def __init__(self, llm, answers, monkeypatch):
        self.engine, self.scheduler, self.answers = llm.llm_engine, scheduler_of(llm), answers
        self.faults = [self.scheduler.std.faults.logged, speculator_of(llm).std.faults.logged]
        self.pool = self.scheduler.kv_cache_manager.block_pool
        self.free, self.seen, self.serial, self.turn = self.pool.get_num_free_blocks(), Counter(), 0, 0
        monkeypatch.setattr(self.scheduler.std, "choose", self.choose)
        self.preempt = self.scheduler._preempt_request
        monkeypatch.setattr(self.scheduler, "_preempt_request", self._preempted)

    def choose(self, requests: list[str], kv: int) -> Choice:
        length = self.schedule.lengths[self.turn % len(self.schedule.lengths)]
        self.turn += 1
        return Choice(length, "fixed")

    def _preempted(self, *args, drop_stale_output: bool = False, **kwargs) -> None:
        self.seen["preempted by a reset" if drop_stale_output else "preempted for want of blocks"] += 1
        self.preempt(*args, drop_stale_output=drop_stale_output, **kwargs)

    def run(self, schedule: Schedule) -> None:
        self.schedule, self.turn = schedule, 0
        self.seen["schedules"] += 1
        served = {}
        for arrival in schedule.arrivals:
            self.serial += 1
            served[str(self.serial)] = Served(arrival)
        if not schedule.warm:
            self.engine.reset_prefix_cache()
        try:
            self._serve(served)
        finally:  # so that hypothesis can go on with the same engine
            self._drain(served)
        self._check_nothing_is_left()
        for request in served.values():
            self._check(request)

    def _serve(self, served: dict[str, Served]) -> None:
        for step in range(LAST_STEP):
            for name, request in served.items():
                self._arrive_or_abort(name, request, step)
            if step == self.schedule.reset:
                self.seen["emptied under way"] += self.engine.reset_prefix_cache(reset_running_requests=True)
            for out in self.engine.step():
                served[out.request_id].tokens = list(out.outputs[0].token_ids)
                served[out.request_id].reason = out.outputs[0].finish_reason
            if step >= LAST_EVENT and not self.engine.has_unfinished_requests():
                return
        raise AssertionError("requests do not come to an end")

    def _arrive_or_abort(self, name: str, request: Served, step: int) -> None:
        arrival = request.arrival
        if step == arrival.step:
            prompt, params = ALL[arrival.request]
            request.inside = self.engine.add_request(name, {"prompt_token_ids": prompt}, params.clone())
        elif arrival.abort and step == arrival.step + arrival.abort and request.reason is None:
            self.seen["aborted"] += 1
            self.seen["aborted with drafts"] += bool(self.scheduler.requests[request.inside].spec_token_ids)
            request.aborted = True
            self.engine.abort_request([name])

    def _drain(self, served: dict[str, Served]) -> None:
        self.engine.abort_request([name for name, request in served.items() if request.reason is None])
        for _ in range(3):  # the worker hears of what has ended in the next step; an async step may be on its way
            self.engine.step()

    def _check_nothing_is_left(self) -> None:
        assert not self.scheduler.requests and not self.scheduler.running and not self.scheduler.waiting
        free, self.free = self.free, self.pool.get_num_free_blocks()
        assert self.free == free, "a block has leaked"
        assert not any(self.faults), "std has failed, and vLLM has gone on without it"

    def _check(self, request: Served) -> None:
        if request.arrival.request >= len(POOL):
            return
        tokens, reason = self.answers[request.arrival.request]
        if request.aborted:
            assert request.tokens == tokens[: len(request.tokens)], "other tokens than plain vLLM's"
            self.seen["cut short"] += 0 < len(request.tokens) < len(tokens)
        else:
            assert (request.tokens, request.reason) == (tokens, reason), "other tokens than plain vLLM's"
            self.seen["whole"] += 1
