"""What the acceptance lab reads and switches inside an in-process engine; a server never comes here.

switch    Selector.change, the speculator's CUDA graphs and the scheduler's fixed draft length, while no request runs
draft_steps  DraftPasses.count: what the proposals of each request came to
passes    StdSpeculator.observe_verification: what the sampler kept of each request, before vLLM trims it to max_tokens
window    KVCacheCoordinator.find_longest_cache_hit: a prompt found in the prefix cache still computes its last tokens,
          so selection sees the same observation queries in every cell, and vLLM pads no first pass with empty drafts
"""

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch

from vllm_std.patches.wrapping import Patch
from vllm_std.selection.policies import Policy

LAB = Patch(
    name="lab",
    replaces=(
        "four parts of an in-process engine, listed in patches.lab; only `vllm-std acceptance` and scripts that "
        "measure use it"
    ),
    why="vLLM counts drafts for all requests together, and fixes draft length and drafter at start-up",
    upstream="none",
    remove_when="RequestOutput tells the drafts of its request, and a speculator's options can change",
)

Passes = dict[str, list[tuple[int, int]]]


class Bench:
    """An engine on the bench. Made by `attach`; `max_gamma`: the draft length it was started with."""

    def __init__(self, llm):
        self.llm = llm
        try:
            core = llm.llm_engine.engine_core.engine_core
            runner = core.model_executor.driver_worker.worker.model_runner
        except AttributeError:
            raise ValueError("the lab needs the engine in its own process: use tensor_parallel_size 1.") from None
        self.scheduler, self.rows, self.speculator = core.scheduler, runner.req_states, runner.speculator
        self.max_gamma = self.scheduler.num_spec_tokens
        self.seen: list[tuple[dict[int, str], torch.Tensor]] = []
        self.outcomes: list[tuple[dict[int, str], torch.Tensor, torch.Tensor]] = []  # of each round with proposals

    def switch(self, gamma: int, policy: Policy, **options) -> None:
        """Draft `gamma` tokens a round, and select by another policy and other options of std.

        Raises ValueError for what std cannot do.
        """
        self.speculator.std.selector.change(policy, **options)
        # A CUDA graph holds the addresses of the masks it was captured with: without it drafts are the same, eagerly.
        for graphs in (self.speculator.std.select_graphs, self.speculator.decode_cudagraph_manager):
            graphs.graphs.clear()
            graphs._graphs_captured = False
        self.scheduler.std.controller.length = self.scheduler.num_spec_tokens = gamma

    def passes(self) -> Passes:
        """{request id: [(tokens sampled, drafts rejected) of each pass]}, in order, since the last call."""
        passes = defaultdict(list)
        for ids, counts in self.seen:
            for row, sampled, rejected in counts.T.tolist():
                passes[ids[row].split("-")[0]].append((sampled, rejected))  # vLLM adds a random suffix
        self.seen.clear()
        return passes

    def draft_steps(self) -> dict[str, dict[str, Any]]:
        """{request id: its draft steps, the drafts that they sampled, and the proposals by number that came true and
        that were compared}, since the last call; empty without proposals."""
        total: dict[str, torch.Tensor] = {}
        for ids, rows, outcomes in self.outcomes:
            for row, counts in zip(rows.tolist(), outcomes):
                if row >= 0:
                    name = ids[row].split("-")[0]
                    total[name] = total.get(name, 0) + counts
        self.outcomes.clear()
        return {
            name: {
                "draft_steps": int(counts[1, -1]),
                "step_drafts": int(counts[0, -1]),
                "came_true": counts[0, :-1].tolist(),
                "compared": counts[1, :-1].tolist(),
            }
            for name, counts in total.items()
        }

    def facts(self) -> dict[str, Any]:
        """What the engine resolved by itself: dtype, tokens of a KV block, device."""
        config = self.llm.llm_engine.vllm_config
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        dtype = str(config.model_config.dtype).removeprefix("torch.")
        return {"dtype": dtype, "block_size": config.cache_config.block_size, "device": device}

    def cache_tokens(self) -> int:
        """Tokens that the KV cache holds."""
        cache = self.llm.llm_engine.vllm_config.cache_config
        return cache.num_gpu_blocks * cache.block_size


@contextlib.contextmanager
def attach(llm) -> Iterator[Bench]:
    """Watch an engine until the block ends; leaves it with the draft length it was started with."""
    bench = Bench(llm)
    coordinator = bench.scheduler.kv_cache_manager.coordinator
    hit, observe = coordinator.find_longest_cache_hit, bench.speculator.observe_verification

    def find_longest_cache_hit(block_hashes, max_cache_hit_length, *args, **kwargs):
        return hit(block_hashes, max(0, max_cache_hit_length - bench.max_gamma), *args, **kwargs)

    def observe_verification(idx_mapping, num_sampled, num_rejected):
        # A new tensor: the runner writes these again in its next pass.
        counts = torch.stack([idx_mapping.long(), num_sampled.long(), num_rejected.long()])
        bench.seen.append((dict(bench.rows.index_to_req_id), counts))
        return observe(idx_mapping, num_sampled, num_rejected)

    proposals = bench.speculator.std.passes
    count = proposals.count if proposals is not None else None

    def count_outcomes():
        bench.outcomes.append(
            (dict(bench.rows.index_to_req_id), proposals.rows.clone(), proposals.outcomes.clone().cpu())
        )
        return count()

    if proposals is not None:
        proposals.count = count_outcomes
        planner = bench.scheduler.std.controller.proposals
        planner.count = lambda outcomes: None  # so that rounds have a draft step for each draft
    coordinator.find_longest_cache_hit = find_longest_cache_hit
    bench.speculator.observe_verification = observe_verification
    try:
        yield bench
    finally:
        if proposals is not None:
            del proposals.count, planner.count
        del coordinator.find_longest_cache_hit, bench.speculator.observe_verification
        bench.scheduler.std.controller.length = bench.scheduler.num_spec_tokens = bench.max_gamma
