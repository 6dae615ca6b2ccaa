"""The stopwatch in an engine: each round, stage by stage, in GPU time.

Methods of the model runner and of the speculator are wrapped from outside, after start-up, so no graph holds a mark and
the product has no stopwatch in it. A mark is a CUDA event on the runner's stream; without a GPU, the host's clock.
"""

import functools
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch

from vllm_std.tools.acceptance.records import count

STAGES = ("draft", "select", "verify", "sample")  # what is left of a round is "rest"
GRAPHS = ("verify", "select", "draft")  # stages that can be full CUDA graphs
SETTLE = 3  # rounds left out before the first that counts


class Clock:
    def __init__(self):
        self.cuda = torch.cuda.is_available()

    def mark(self):
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def ms(self, first, last) -> float:
        """Milliseconds between two marks; the GPU must be idle."""
        return first.elapsed_time(last) if self.cuda else (last - first) * 1e3

    def idle(self) -> None:
        """Wait until the GPU has nothing left to do."""
        if self.cuda:
            torch.cuda.synchronize()


@dataclass
class Round:
    """One pass of the runner over a batch. counts: [2, requests] on the device, tokens sampled and drafts rejected."""

    start: Any
    spans: dict[str, list] = field(default_factory=lambda: defaultdict(list))  # stage: [(first mark, last mark)]
    ids: list[str] = field(default_factory=list)
    prefilling: bool = True
    drafts: int = 0
    counts: torch.Tensor | None = None
    graphs: dict[str, int] = field(default_factory=lambda: defaultdict(int))  # full CUDA graphs replayed


class Probe:
    """Watches the rounds of an engine in this process; `rounds` are those since `begin`.

    std: time the stages of its speculator. Raises AttributeError where it has other ones.
    """

    def __init__(self, runner, std: bool):
        self.clock, self.rounds, self.runner = Clock(), [], runner
        self.after_sample = lambda: None
        self._watch_runner(runner)
        self._count_graphs(runner.cudagraph_manager, "verify")
        if runner.speculator is not None:
            for stage, manager in (("draft", "decode_cudagraph_manager"), ("select", "select_cudagraph_manager")):
                self._count_graphs(getattr(runner.speculator, manager, None), stage)
            self._time(runner.speculator, "propose", "propose" if std else "draft")
        if std:
            self._watch_std(runner.speculator)

    def _watch_std(self, speculator) -> None:
        for name, stage in (("_select", "select"), ("_draft", "draft")):
            if not hasattr(speculator, name):
                raise AttributeError(f"the speculator has no method {name}, which this bench times as '{stage}'.")
            self._time(speculator, name, stage)

    def begin(self) -> None:
        self.clock.idle()
        self.rounds.clear()

    def _watch_runner(self, runner) -> None:
        execute, sample = runner.execute_model, runner.sample

        @functools.wraps(execute)
        def execute_model(*args, **kwargs):
            self.rounds.append(Round(self.clock.mark()))
            result = execute(*args, **kwargs)
            self.rounds[-1].spans["verify"].append((self.rounds[-1].start, self.clock.mark()))
            return result

        @functools.wraps(sample)
        def timed_sample(hidden_states, input_batch, *args, **kwargs):
            first = self.clock.mark()
            result = sample(hidden_states, input_batch, *args, **kwargs)
            now = self.rounds[-1]
            now.spans["sample"].append((first, self.clock.mark()))
            now.ids, now.drafts = list(input_batch.req_ids), int(input_batch.num_draft_tokens)
            now.prefilling = bool(input_batch.is_prefilling_np.any())
            # A copy: the runner may write these again in its next pass.
            now.counts = torch.stack([result[1].long(), result[2].long()])
            self.after_sample()
            return result

        runner.execute_model, runner.sample = execute_model, timed_sample

    def _time(self, owner, name: str, stage: str) -> None:
        plain = getattr(owner, name)

        @functools.wraps(plain)
        def timed(*args, **kwargs):
            first = self.clock.mark()
            result = plain(*args, **kwargs)
            self.rounds[-1].spans[stage].append((first, self.clock.mark()))
            return result

        setattr(owner, name, timed)

    def _count_graphs(self, manager, name: str) -> None:
        if manager is None:
            return
        plain = manager.run_fullgraph

        @functools.wraps(plain)
        def run_fullgraph(*args, **kwargs):
            if self.rounds:
                self.rounds[-1].graphs[name] += 1
            return plain(*args, **kwargs)

        manager.run_fullgraph = run_fullgraph


# ------------------------------------------------------------ one run


def full_batch(rounds: list[Round], batch: int, gamma: int | None) -> list[Round]:
    """The longest stretch of rounds in which all requests decode, with gamma drafts each (None: with any), less the
    first few."""
    best: list[Round] = []
    stretch: list[Round] = []
    for one in rounds:
        whole = one.counts is not None and not one.prefilling and len(one.ids) == batch
        stretch = [*stretch, one] if whole and (gamma is None or one.drafts == batch * gamma) else []
        best = max(best, stretch, key=len)
    return best[SETTLE:]


def timing(clock: Clock, rounds: list[Round]) -> dict[str, Any]:
    """Totals of consecutive rounds, and ms of a mean round by stage; the last one only marks where they end."""
    rounds, end = rounds[:-1], rounds[-1].start
    many, total = len(rounds), clock.ms(rounds[0].start, end)
    spent = {stage: sum(_spent(clock, one, stage) for one in rounds) for stage in (*STAGES, "propose")}
    spent["rest"] = total - sum(spent[stage] for stage in STAGES)
    sampled = sum(int(one.counts[0].sum()) for one in rounds)
    return {
        "rounds": many, "seconds": total / 1e3, "ms_per_round": total / many,
        "split_ms": {stage: round(ms / many, 4) for stage, ms in spent.items()},
        "passes": sum(len(one.ids) for one in rounds), "tokens": sampled, "tokens_per_s": sampled / total * 1e3,
        "drafted": sum(one.drafts for one in rounds), "accepted": sampled - sum(len(one.ids) for one in rounds),
        "graphs_per_round": {name: sum(one.graphs[name] for one in rounds) / many for name in GRAPHS},
    }  # fmt: skip


def _spent(clock: Clock, one: Round, stage: str) -> float:
    return sum(clock.ms(first, last) for first, last in one.spans.get(stage, ()))


def answering(clock: Clock, rounds: list[Round], outputs: list, gamma: int) -> dict[str, Any]:
    """The same of whole answers: from the first round without a prompt to the one that sampled the last token kept.

    Rounds that run ahead of the end, and tokens that vLLM trimmed, do not count.
    """
    first = 1 + max(i for i, one in enumerate(rounds) if one.counts is not None and one.prefilling)
    length = {out.request_id: len(out.outputs[0].token_ids) for out in outputs}
    passes, given, last, before = defaultdict(list), defaultdict(int), first, 0
    for number, one in enumerate(rounds):
        for name, sampled, rejected in zip(one.ids, *(one.counts.tolist() if one.counts is not None else ((), ()))):
            name = name.split("-")[0]  # vLLM adds a random suffix
            if sampled and given[name] < length[name]:
                last = max(last, number)
            given[name] += sampled
            before += sampled if number < first else 0
            passes[name].append((sampled, rejected))
    counts = [count(passes[name], generated, gamma) for name, generated in length.items()]
    needed = sum(passes_of(passes[name], generated) for name, generated in length.items())
    kept, ms = sum(length.values()) - before, clock.ms(rounds[first].start, rounds[last].spans["sample"][-1][1])
    return timing(clock, rounds[first : last + 1]) | {
        "seconds": ms / 1e3, "tokens": kept, "tokens_per_s": kept / ms * 1e3,
        "drafted": sum(c["drafted"] for c in counts), "accepted": sum(c["accepted"] for c in counts), "passes": needed,
    }  # fmt: skip


def passes_of(passes: list[tuple[int, int]], generated: int) -> int:
    """How many passes after the first token an answer took; passes: (tokens sampled, drafts rejected) of each."""
    length, many = 0, 0
    for sampled, _ in passes:
        many += 0 < length < generated
        length += sampled
    return many
