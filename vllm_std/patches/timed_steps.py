"""Steps of requests without content, through the engine's own executor, to measure what steps take.

They go the way of every other step, so they take what steps take: CUDA graphs, tensor parallelism and the host's share
included. The KV blocks they use hold no request's tokens yet, and nothing finds them in the prefix cache.
"""

import time

from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.output import CachedRequestData, NewRequestData, SchedulerOutput

from vllm_std.patches.blocks import Group, block_ids


def cache_groups(vllm_config) -> list[Group]:
    """The KV cache groups of the engine; before they are known, one of full-attention layers."""
    return vllm_config.speculative_config.kv_groups or [(vllm_config.cache_config.block_size, 0)]


class TimedRequests:
    """`batch` requests of `context` cached tokens each, until `finish`; with blocks for `room` more tokens."""

    def __init__(self, executor, batch: int, context: int, room: int):
        self.executor, self.ids = executor, [f"_std_calibration_{row}_" for row in range(batch)]
        self.computed, self.verifies = context - 1, 0
        self.waiting: list = []
        self.ahead = int(executor.vllm_config.scheduler_config.async_scheduling)
        ids = block_ids(cache_groups(executor.vllm_config), batch, context, room)
        params, prompt = SamplingParams(temperature=0.0, max_tokens=room), [0] * context
        self.new = [
            NewRequestData(
                req_id=request, prompt_token_ids=prompt, mm_features=[], sampling_params=params, pooling_params=None,
                block_ids=blocks, num_computed_tokens=context - 1, lora_request=None, prefill_token_ids=prompt,
            )
            for request, blocks in zip(self.ids, ids)
        ]  # fmt: skip
        self._step(0)

    def time(self, length: int, repeats: int) -> float:
        """Seconds of a step that verifies `length` drafts of each request and drafts as many: the least of `repeats`,
        because what disturbs a step only adds to it."""
        self.verifies, ended = 0, []
        for _ in range(repeats + 2):  # the first one verifies nothing yet
            self._step(length)
            ended.append(time.perf_counter())
        return min(later - earlier for earlier, later in zip(ended[1:], ended[2:]))

    def finish(self) -> None:
        while self.waiting:
            self.waiting.pop().result()
        output = SchedulerOutput.make_empty()
        output.finished_req_ids = set(self.ids)
        self.executor.execute_model(output)

    def _step(self, length: int) -> None:
        output, tokens = SchedulerOutput.make_empty(), 1 + self.verifies
        if self.new:
            output.scheduled_new_reqs, self.new = self.new, []
        else:
            cached = CachedRequestData.make_empty()
            cached.req_ids, cached.new_block_ids = self.ids, [None] * len(self.ids)
            cached.num_computed_tokens, cached.num_output_tokens = [self.computed] * len(self.ids), [1] * len(self.ids)
            output.scheduled_cached_reqs = cached
        output.num_scheduled_tokens = dict.fromkeys(self.ids, tokens)
        output.total_num_scheduled_tokens = tokens * len(self.ids)
        if self.verifies:
            output.scheduled_spec_decode_tokens = {request: [-1] * self.verifies for request in self.ids}
        output.num_spec_tokens_to_schedule = self.verifies = length
        self.computed += tokens
        self.waiting.append(self._submit(output))
        # As the engine does: with async scheduling a step is on its way before the outcome of the last one is awaited.
        while len(self.waiting) > self.ahead:
            self.waiting.pop(0).result()

    def _submit(self, output):
        executed = self.executor.execute_model(output, non_block=True)
        return self.executor.sample_tokens(None, non_block=True) or executed
