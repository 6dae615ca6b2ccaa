"""The draft length of each of a scheduler's steps, and what is learned from the step.

A step's drafts are proposed after its dense pass and verified by the next one, so the length is chosen before a step is
scheduled: KV slots are reserved for as many drafts and no more. With async scheduling the outcome of the last step is
not known by then; nothing here waits for it.
"""

import time
from collections.abc import Callable, Iterable
from typing import Any

from vllm_std.config import StdConfig
from vllm_std.control.choice import Choice
from vllm_std.control.controller import Controller
from vllm_std.control.fixed import FixedLength
from vllm_std.control.pause import Pause
from vllm_std.control.step import Step, verified_drafts
from vllm_std.faults import Faults
from vllm_std.mask import MaskShape
from vllm_std.patches.requests import opts_out
from vllm_std.steps import StepStats, leaves_queries

MEASURED_EVERY = 4  # plain steps of which one is measured: without drafts a step should cost what it costs without std


class DraftLengths:
    """What std adds to a scheduler: its controller, the requests that opted out, and the step under way.

    controller: chooses the lengths; options: of the engine.
    """

    def __init__(self, controller: Controller | FixedLength, mask: MaskShape, options: StdConfig):
        self.controller = controller
        self.mask = mask
        self.needs_queries = options.needs_queries
        self.opted_out: set[str] = set()
        self.choice = Choice(0, "idle")
        self.began = 0.0  # seconds, of the step that is being scheduled
        self.kv = 0  # cached tokens of the requests that decode in it
        self.unscored = False  # whether the round after it is
        self.step: Step | None = None  # the last one with an outcome
        self.draft_steps: int | None = None  # that made the drafts which it verifies
        self.finished = 0.0  # seconds, when its outcome came
        self.plain_steps = 0  # in a row, up to it
        self.stats = StepStats()
        self.faults = Faults()
        self.pause = Pause()

    # ------------------------------------------------------------ requests

    def add(self, request: str, params: Any) -> None:
        with self.faults.caught("scheduler"):
            self.opted_out.discard(request)  # it may be the next turn of a session
            if opts_out(params):
                self.opted_out.add(request)

    def forget(self, request: str) -> None:
        """The request has finished."""
        self.opted_out.discard(request)
        with self.faults.caught("scheduler"):
            self.controller.forget(request)

    # ------------------------------------------------------------ before a step

    def begin(self, decoding: Callable[[], Iterable]) -> Choice:
        """Choose for the step to come; decoding: gives the requests that will decode after it."""
        self.began = time.perf_counter()
        self.choice = Choice(0, "fault")
        if self.pause.step():
            return self.choice
        with self.faults.caught("scheduler"):
            requests = list(decoding())
            self.kv = sum(request.num_computed_tokens for request in requests)
            self.choice = self.choose([request.request_id for request in requests], self.kv)
        return self.choice

    def choose(self, requests: list[str], kv: int) -> Choice:
        """requests: that will decode; kv: their cached tokens in all."""
        return self.controller.choose(requests, kv, self.opted_out)

    def scheduled(self, output) -> None:
        """vLLM has scheduled the step; `output` is told how many tokens to draft, and what the step is."""
        verifies_unscored = self.unscored
        # A pass of one token per request leaves no queries to score with: one token is drafted over the last mask, and
        # the pass that verifies it leaves queries again.
        tokens = output.num_scheduled_tokens.values()
        without_queries = bool(tokens) and not leaves_queries(max(tokens))
        self.unscored = self.choice.length > 0 and self.needs_queries and without_queries
        length = 1 if self.unscored else self.choice.length
        output.num_spec_tokens_to_schedule = length
        if getattr(output, "skip_drafts", False):  # vLLM 0.33 proposes none where all its requests end with this step
            length = 0
        output.std = Step(
            began=self.began,
            choice=self.choice,
            length=length,
            steps=length if self.choice.steps is None else min(length, self.choice.steps),
            verified=verified_drafts(output),
            requests=len(output.num_scheduled_tokens),
            drafted=len(output.scheduled_spec_decode_tokens),
            kv=self.kv,
            unscored=verifies_unscored,
        )

    # ------------------------------------------------------------ after a step

    def finish(self, step: Step, faults: dict[str, int], proposals: list[list[int]] | None) -> None:
        """The outcome of a step has come; faults, proposals: that the worker counted in its round."""
        before, self.step = self.step, step
        self.draft_steps = None if before is None else before.steps
        self.faults.counts.update(faults)
        if faults:
            self.pause.begin()
        if step.requests:
            with self.faults.caught("scheduler"):
                if proposals is not None:
                    self.controller.proposals.count(proposals)
                    self.stats.count_proposals(proposals)
                self.measure(step, before)
                self._count(step)

    def measure(self, step: Step, before: Step | None) -> None:
        """Tell the controller how long a step took that does the same as the one before. Between two outcomes lie the
        drafts that the later step verifies, and its dense pass."""
        now = time.perf_counter()
        seconds = now - max(self.finished, step.began)
        self.finished = now
        if before is None or not before.length == step.length == step.verified:
            return
        if self.plain_steps % MEASURED_EVERY == 0:
            mixed = 0 < step.drafted < step.requests
            self.controller.measured(step.length, step.requests, step.kv, seconds, mixed, before.steps)
        self.plain_steps = 0 if step.length else self.plain_steps + 1

    def _count(self, step: Step) -> None:
        tokens = self.mask.num_blocks * self.mask.block_size * step.requests
        share = self.mask.share or min(1.0, tokens / max(1, step.kv))
        reason = "unscored" if step.length != step.choice.length else step.choice.reason
        self.stats.count(step.length, reason, step.choice.speedup, share)

    def observe(self, request: str, drafted: int, accepted: int) -> None:
        """Drafts of a request were verified in the step whose outcome has come; not counted if they were unscored."""
        with self.faults.caught("scheduler"):
            if drafted > 0 and self.step is not None and not self.step.unscored:
                self.controller.observe(request, drafted, accepted, self.draft_steps)

    def collect(self) -> dict[str, Any] | None:
        """Statistics since the last call, for the metrics; None where there were no steps."""
        counted = self.stats.collect(self.controller.acceptance())
        return counted and counted | {"faults": self.faults.collect()}
