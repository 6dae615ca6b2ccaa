"""vLLM's schedulers with std's draft lengths. All that std adds to their state is in the attribute `std`."""

from itertools import chain, islice
from typing import TYPE_CHECKING

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from vllm_std.control import Controller, FixedLength, calibration
from vllm_std.control.lengths import DraftLengths
from vllm_std.patches import stats

if TYPE_CHECKING:
    from vllm.v1.core.sched.scheduler import Scheduler as Mixin
else:
    Mixin = object


class Drafting(Mixin):
    """What std adds to vLLM's scheduler: the draft length of each step."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        options = self.vllm_config.speculative_config
        controller: Controller | FixedLength = FixedLength(self.num_spec_tokens, options.proposals)
        if options.adaptive:
            costs = calibration.cost_model(self.vllm_config)
            controller = Controller(costs, options.draft_lengths, self.max_num_running_reqs, options.proposals)
        mask = options.mask_shape(self.cache_config.block_size)
        self.std = DraftLengths(controller, mask, options)

    def add_request(self, request) -> None:
        self.std.add(request.request_id, request.sampling_params)
        super().add_request(request)

    def _free_request(self, request, *args, **kwargs):
        self.std.forget(request.request_id)
        return super()._free_request(request, *args, **kwargs)

    # ------------------------------------------------------------ before a step

    def schedule(self, *args, **kwargs):
        choice = self.std.begin(self._decoding)
        self.num_lookahead_tokens = choice.length and choice.length + self.vllm_config.speculative_config.proposals
        # Without a lookup vLLM pads a request whose prompt is cached to the longest round, as the others of its batch.
        padded = choice.length and isinstance(self.std.controller, FixedLength)
        self.dynamic_sd_lookup = None if padded else [self.num_spec_tokens] * (self.max_num_running_reqs + 1)
        return super().schedule(*args, **kwargs)

    def _decoding(self) -> list:
        """Requests that will decode after this step, as far as can be known before it is scheduled."""
        free = self.max_num_running_reqs - len(self.running)
        budget = self.max_num_scheduled_tokens
        requests = []
        for request in chain(self.running, islice(self.waiting, max(0, free))):
            budget -= max(1, request.num_tokens - request.num_computed_tokens)
            if budget < 0:
                break
            requests.append(request)
        return requests

    def _update_after_schedule(self, scheduler_output) -> None:
        self.std.scheduled(scheduler_output)
        super()._update_after_schedule(scheduler_output)
        self._drop_drafts(scheduler_output.num_scheduled_tokens)

    def update_draft_token_ids(self, draft_token_ids) -> None:
        super().update_draft_token_ids(draft_token_ids)
        self._drop_drafts(draft_token_ids.req_ids)

    def _drop_drafts(self, requests) -> None:
        """Requests that opted out are verified without drafts."""
        for request in self.std.opted_out.intersection(requests):
            if request in self.requests:
                self.requests[request].spec_token_ids = []

    # ------------------------------------------------------------ after a step

    def update_from_output(self, scheduler_output, model_runner_output):
        faults = getattr(model_runner_output, "std_faults", {})
        self.std.finish(scheduler_output.std, faults, getattr(model_runner_output, "std_proposals", None))
        return super().update_from_output(scheduler_output, model_runner_output)

    def _update_request_with_output(self, request, new_token_ids, *args, **kwargs):
        """A session that goes on after its answer goes on from the last token but one that it was given: what was
        verified beyond `max_tokens` or a stop is cut off, and vLLM 0.32 goes on counting it as computed."""
        tokens, stopped = super()._update_request_with_output(request, new_token_ids, *args, **kwargs)
        if stopped and request.resumable:
            beyond = request.num_computed_tokens - request.num_output_placeholders - (request.num_tokens - 1)
            request.num_computed_tokens -= max(0, beyond)
        return tokens, stopped

    def make_spec_decoding_stats(
        self, spec_decoding_stats, num_draft_tokens, num_accepted_tokens, num_invalid_spec_tokens, request_id
    ):
        drafted = num_draft_tokens - (num_invalid_spec_tokens or {}).get(request_id, 0)
        self.std.observe(request_id, drafted, num_accepted_tokens)
        return super().make_spec_decoding_stats(
            spec_decoding_stats, num_draft_tokens, num_accepted_tokens, num_invalid_spec_tokens, request_id
        )

    def make_stats(self, *args, **kwargs):
        made = super().make_stats(*args, **kwargs)
        with self.std.faults.caught("scheduler"):
            counted = self.std.collect()
            if made is not None and counted is not None:
                stats.attach(made, counted)
        return made

    def shutdown(self) -> None:
        with self.std.faults.caught("scheduler"):
            if isinstance(self.std.controller, Controller):
                calibration.save(self.vllm_config, self.std.controller.costs)
        super().shutdown()


class StdScheduler(Drafting, Scheduler):
    """vLLM's scheduler with std's draft lengths."""


class AsyncStdScheduler(Drafting, AsyncScheduler):
    """vLLM's async scheduler with std's draft lengths."""
