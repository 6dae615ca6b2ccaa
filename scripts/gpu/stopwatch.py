"""A stopwatch in an engine: each step, stage by stage, in GPU time.

Methods of the model runner and of the speculator are wrapped from outside, after start-up, so no graph holds a mark and
the product has no stopwatch in it. A mark is a CUDA event on the runner's stream; without a GPU, the host's clock.
"""

import functools
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch

# Methods of the speculator, and the stages of a step that they are.
STD_STAGES = {"_select": "select", "_draft": "draft"}


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
class TimedStep:
    """One pass of the runner over a batch, and the drafts that follow it.

    spans: (first mark, last mark) by stage. drafts: that were verified, of all requests. counts: [2, requests] on the
    device, tokens sampled and drafts rejected. graphs: full CUDA graphs replayed, by stage.
    """

    start: Any
    spans: dict[str, list] = field(default_factory=lambda: defaultdict(list))
    ids: list[str] = field(default_factory=list)
    prefilling: bool = True
    drafts: int = 0
    counts: torch.Tensor | None = None
    graphs: dict[str, int] = field(default_factory=lambda: defaultdict(int))


class Stopwatch:
    """Times the steps of an engine in this process; `steps` are those since `begin`.

    std: time the stages of its speculator. Raises AttributeError where it has other ones. after_sample: called after
    each pass.
    """

    def __init__(self, runner, std: bool):
        self.clock = Clock()
        self.steps: list[TimedStep] = []
        self.after_sample = lambda: None
        self._time_passes(runner)
        self._count_graphs(runner.cudagraph_manager, "verify")
        speculator = runner.speculator
        if speculator is not None:
            self._count_graphs(getattr(speculator, "decode_cudagraph_manager", None), "draft")
            self._count_graphs(getattr(getattr(speculator, "std", None), "select_graphs", None), "select")
            self._time(speculator, "propose", "propose" if std else "draft")
        for name, stage in STD_STAGES.items() if std else ():
            if not hasattr(speculator, name):
                raise AttributeError(f"the speculator has no method {name}, which is timed as '{stage}' here.")
            self._time(speculator, name, stage)

    def begin(self) -> None:
        self.clock.idle()
        self.steps.clear()

    def _time_passes(self, runner) -> None:
        execute, sample = runner.execute_model, runner.sample

        @functools.wraps(execute)
        def execute_model(*args, **kwargs):
            self.steps.append(TimedStep(self.clock.mark()))
            result = execute(*args, **kwargs)
            self.steps[-1].spans["verify"].append((self.steps[-1].start, self.clock.mark()))
            return result

        @functools.wraps(sample)
        def timed_sample(hidden_states, input_batch, *args, **kwargs):
            first = self.clock.mark()
            result = sample(hidden_states, input_batch, *args, **kwargs)
            self.steps[-1].spans["sample"].append((first, self.clock.mark()))
            self._note_batch(input_batch, *result[1:3])
            self.after_sample()
            return result

        runner.execute_model, runner.sample = execute_model, timed_sample

    def _note_batch(self, input_batch, num_sampled: torch.Tensor, num_rejected: torch.Tensor) -> None:
        step = self.steps[-1]
        step.ids = list(input_batch.req_ids)
        step.drafts = int(input_batch.num_draft_tokens)
        step.prefilling = bool(input_batch.is_prefilling_np.any())
        # A copy: the runner may write these again in its next pass.
        step.counts = torch.stack([num_sampled.long(), num_rejected.long()])

    def _time(self, owner, name: str, stage: str) -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        def timed(*args, **kwargs):
            first = self.clock.mark()
            result = original(*args, **kwargs)
            self.steps[-1].spans[stage].append((first, self.clock.mark()))
            return result

        setattr(owner, name, timed)

    def _count_graphs(self, manager, stage: str) -> None:
        if manager is None:
            return
        original = manager.run_fullgraph

        @functools.wraps(original)
        def run_fullgraph(*args, **kwargs):
            if self.steps:
                self.steps[-1].graphs[stage] += 1
            return original(*args, **kwargs)

        manager.run_fullgraph = run_fullgraph
