"""The scheduler's side of the seam ledger: where the draft length of each step is chosen, and what came of it is seen.

A step's drafts are proposed after its dense pass and verified by the next one, so the length is chosen before a step is
scheduled: KV slots are reserved for as many drafts and no more. With async scheduling the outcome of the last step is
not known by then; nothing here waits for it.
"""

import time
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from vllm_std.control import Acceptance, Choice, Controller, calibration
from vllm_std.faults import Faults
from vllm_std.patches import stats
from vllm_std.patches.requests import opts_out
from vllm_std.steps import StepStats

LONGEST_REST = 1024  # steps
EVERY = 4  # of so many plain steps one is measured, because a step without drafts should cost what it costs without std


@dataclass(frozen=True)
class Step:
    """A scheduled step. began: seconds; choice: what was chosen; length: drafts it proposes; verified: drafts that each
    drafted request of it has, -1 where they differ or a prompt is computed; drafted: requests that have any; kv: cached
    tokens that it reads; blind: whether the drafts it verifies were drafted without being scored."""

    began: float
    choice: Choice
    length: int
    verified: int
    requests: int
    drafted: int
    kv: int
    blind: bool


if TYPE_CHECKING:
    from vllm.v1.core.sched.scheduler import Scheduler as Mixin
else:
    Mixin = object


class Drafting(Mixin):
    """What std adds to vLLM's scheduler: the draft length of each step."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        options, self.gamma = self.vllm_config.speculative_config, self.num_spec_tokens
        self.asks = options.needs_queries
        self.proposals = options.proposals
        self.mask = options.mask_shape(self.cache_config.block_size)
        self.costs = calibration.costs(self.vllm_config) if options.adaptive else None
        self.controller, self.outcomes = None, Acceptance(1, self.gamma)
        if options.adaptive:
            self.controller = Controller(self.costs, options.draft_lengths, self.max_num_running_reqs)
            self.outcomes = self.controller
        self.lookup = [self.gamma] * (self.max_num_running_reqs + 1)
        self.opted_out: set[str] = set()
        self.steps, self.step, self.last, self.plain_steps = StepStats(), None, None, 0
        self.choice, self.kv, self.blind, self.finished = Choice(0, "idle", 1.0), 0, False, 0.0
        self.faults, self.rest, self.resting = Faults(), 1, 0  # steps without drafts: after the next fault, still to go

    def add_request(self, request) -> None:
        with self.faults.caught("scheduler"):
            self.opted_out.discard(request.request_id)  # it may be the next turn of a session
            if opts_out(request.sampling_params):
                self.opted_out.add(request.request_id)
        super().add_request(request)

    def _free_request(self, request, *args, **kwargs):
        self.opted_out.discard(request.request_id)
        with self.faults.caught("scheduler"):
            if self.controller is not None:
                self.controller.forget(request.request_id)
        return super()._free_request(request, *args, **kwargs)

    # ------------------------------------------------------------ before a step

    def schedule(self, *args, **kwargs):
        self.began, self.choice = time.perf_counter(), Choice(0, "fault", 1.0)
        if self.resting:
            self.resting -= 1
        else:
            with self.faults.caught("scheduler"):
                requests = self._decoding()
                self.kv = sum(request.num_computed_tokens for request in requests)
                self.choice = self.choose([request.request_id for request in requests], self.kv)
        self.num_lookahead_tokens = self.choice.length and self.choice.length + self.proposals
        # Without a lookup vLLM pads a request whose prompt is cached to the longest round, as the others of its batch.
        self.dynamic_sd_lookup = None if self.controller is None and self.choice.length else self.lookup
        return super().schedule(*args, **kwargs)

    def _decoding(self) -> list:
        """Requests that will decode after this step, as far as can be known before it is scheduled."""
        free, budget = self.max_num_running_reqs - len(self.running), self.max_num_scheduled_tokens
        requests = []
        for request in chain(self.running, islice(self.waiting, max(0, free))):
            budget -= max(1, request.num_tokens - request.num_computed_tokens)
            if budget < 0:
                break
            requests.append(request)
        return requests

    def choose(self, requests: list[str], kv: int) -> Choice:
        """The draft length of the step to come; kv: cached tokens of the requests that will decode."""
        if self.controller is not None:
            return self.controller.choose(requests, kv, self.opted_out)
        skipped = frozenset(self.opted_out)
        willing = any(request not in skipped for request in requests)
        return Choice(self.gamma, "fixed", 1.0, skipped) if willing else Choice(0, "idle", 1.0, skipped)

    def _update_after_schedule(self, scheduler_output) -> None:
        longest, drafted_blind = max(scheduler_output.num_scheduled_tokens.values(), default=0), self.blind
        # A pass of one token per request leaves no queries to score by: one token is drafted from sink, recent window
        # and what was kept before, and the pass that verifies it leaves queries again.
        self.blind = self.choice.length > 0 and self.asks and longest == 1
        length = 1 if self.blind else self.choice.length
        scheduler_output.num_spec_tokens_to_schedule = length
        scheduler_output.std = self._step(scheduler_output, length, drafted_blind)
        super()._update_after_schedule(scheduler_output)
        self._drop_drafts(scheduler_output.num_scheduled_tokens)

    def _step(self, output, length: int, drafted_blind: bool) -> Step:
        tokens, drafts = output.num_scheduled_tokens, output.scheduled_spec_decode_tokens
        decodes = all(tokens[request] == 1 + len(drafts.get(request, ())) for request in tokens)
        lengths = {len(draft) for draft in drafts.values()} or {0}
        verified = lengths.pop() if decodes and len(lengths) == 1 and not output.scheduled_new_reqs else -1
        if getattr(output, "skip_drafts", False):  # vLLM 0.33 proposes none where all its requests end with this step
            length = 0
        return Step(self.began, self.choice, length, verified, len(tokens), len(drafts), self.kv, drafted_blind)

    def update_draft_token_ids(self, draft_token_ids) -> None:
        super().update_draft_token_ids(draft_token_ids)
        self._drop_drafts(draft_token_ids.req_ids)

    def _drop_drafts(self, requests) -> None:
        for request in self.choice.skipped.intersection(requests):
            if request in self.requests:
                self.requests[request].spec_token_ids = []

    # ------------------------------------------------------------ after a step

    def update_from_output(self, scheduler_output, model_runner_output):
        self.step = scheduler_output.std
        self._note(getattr(model_runner_output, "std_faults", {}))
        if self.step.requests:
            with self.faults.caught("scheduler"):
                self._measure(self.step)
                self._count(self.step)
        return super().update_from_output(scheduler_output, model_runner_output)

    def _note(self, faults: dict[str, int]) -> None:
        """A round that failed may fail again, and costs a step that verifies nothing: so drafting rests, each time
        twice as long."""
        self.faults.counts.update(faults)
        if faults:
            self.resting, self.rest = self.rest, min(2 * self.rest, LONGEST_REST)

    def _measure(self, step: Step) -> None:
        """Between two outcomes lie the drafts that the later step verifies, and its dense pass."""
        before, self.last, now = self.last, step, time.perf_counter()
        seconds, self.finished = now - max(self.finished, step.began), now
        if self.controller is None or before is None or not before.length == step.length == step.verified:
            return
        if self.plain_steps % EVERY == 0:
            self.controller.measured(step.length, step.requests, step.kv, seconds, step.drafted)
        self.plain_steps = 0 if step.length else self.plain_steps + 1

    def _count(self, step: Step) -> None:
        tokens = self.mask.num_blocks * self.mask.block_size * step.requests
        kept = self.mask.share or min(1.0, tokens / max(1, step.kv))
        reason = "unscored" if step.length != step.choice.length else step.choice.reason
        skipped = len(step.choice.skipped) if step.length else 0
        self.steps.count(step.length, reason, step.choice.speedup, kept, skipped)

    def _update_request_with_output(self, request, new_token_ids, *args, **kwargs):
        """A session that goes on after its answer goes on from the last token but one that it was given: what was
        verified beyond `max_tokens` or a stop is cut off, and vLLM 0.32 goes on counting it as computed."""
        kept, stopped = super()._update_request_with_output(request, new_token_ids, *args, **kwargs)
        if stopped and request.resumable:
            beyond = request.num_computed_tokens - request.num_output_placeholders - (request.num_tokens - 1)
            request.num_computed_tokens -= max(0, beyond)
        return kept, stopped

    def make_spec_decoding_stats(
        self, spec_decoding_stats, num_draft_tokens, num_accepted_tokens, num_invalid_spec_tokens, request_id
    ):
        with self.faults.caught("scheduler"):
            drafted = num_draft_tokens - (num_invalid_spec_tokens or {}).get(request_id, 0)
            if drafted > 0 and not self.step.blind:
                self.outcomes.observe(request_id, drafted, num_accepted_tokens)
        return super().make_spec_decoding_stats(
            spec_decoding_stats, num_draft_tokens, num_accepted_tokens, num_invalid_spec_tokens, request_id
        )

    def make_stats(self, *args, **kwargs):
        made = super().make_stats(*args, **kwargs)
        with self.faults.caught("scheduler"):
            counted = self.steps.collect(self.outcomes.acceptance())
            if made is not None and counted is not None:
                stats.attach(made, counted | {"faults": self.faults.collect()})
        return made

    def shutdown(self) -> None:
        with self.faults.caught("scheduler"):
            if self.costs is not None:
                calibration.keep(self.vllm_config, self.costs)
        super().shutdown()


class StdScheduler(Drafting, Scheduler):
    """vLLM's scheduler with std's draft lengths."""


class AsyncStdScheduler(Drafting, AsyncScheduler):
    """vLLM's async scheduler with std's draft lengths."""
