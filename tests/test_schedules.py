"""Whatever comes, goes, is preempted or drafted when: greedy tokens are plain vLLM's, and nothing is left behind."""

import os

import pytest
from helpers import Acceptance, keep_async, std
from hypothesis import HealthCheck, Phase, given, settings
from schedules import POOL, SCHEDULES, Driver

pytestmark = [pytest.mark.engine, pytest.mark.versions]
# VLLM_STD_SCHEDULES=N: so many schedules for each kind of engine, others each time; else 75, always the same.
DRAWN = int(os.environ.get("VLLM_STD_SCHEDULES", 0))
PROFILE = settings(
    max_examples=DRAWN or 75, derandomize=not DRAWN, deadline=None, database=None, print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip

ROOM = dict(max_model_len=352, max_num_seqs=4)  # a request of the greatest length takes all blocks but one or two
ENGINES = {
    "a tiny cache, tiny chunks": (std(), dict(max_num_batched_tokens=64, num_gpu_blocks_override=12)),
    "scored once": (std(selection="text"), dict(num_gpu_blocks_override=12)),
    "no prefix cache": (std(refresh=2), dict(enable_prefix_caching=False, num_gpu_blocks_override=12)),
    "proposals": (std(proposals=2), dict(max_num_batched_tokens=64, num_gpu_blocks_override=12)),
    "async scheduling": (std(), dict(async_scheduling=True, num_gpu_blocks_override=12)),
}
EVENTS = (
    "whole", "cut short", "aborted with drafts", "preempted for want of blocks", "preempted by a reset",
)  # fmt: skip


@pytest.fixture(scope="module")
def answers(engines, models) -> list[tuple[list[int], str]]:
    """Tokens and reason to end of each request of POOL, with plain vLLM and room for all."""
    llm = engines(models("llama"), None, max_model_len=352)
    prompts, params = zip(*[({"prompt_token_ids": prompt}, params.clone()) for prompt, params in POOL])
    outputs = llm.generate(list(prompts), list(params), use_tqdm=False)  # which changes the parameters
    return [(list(out.outputs[0].token_ids), out.outputs[0].finish_reason) for out in outputs]


def metric(llm, name: str) -> int:
    (value,) = [metric.value for metric in llm.get_metrics() if metric.name == f"vllm:{name}"]
    return value


def hold(driver: Driver, profile: settings = PROFILE) -> None:
    """Raises AssertionError for a schedule, as small as can be found, on which the property does not hold."""

    @profile
    @given(SCHEDULES)
    def holds(schedule):
        driver.run(schedule)

    holds()


@pytest.mark.supports(
    "random schedules: arrivals, aborts, preemption, chunks, draft lengths (hypothesis)",
    "aborts in the middle of drafts",
)
@pytest.mark.parametrize("kind", ENGINES)
def test_greedy_tokens_are_plain_vllms_under_any_schedule(engines, models, answers, monkeypatch, kind):
    config, options = ENGINES[kind]
    if kind == "async scheduling":
        keep_async(monkeypatch)
    llm = engines(models("llama"), config, **ROOM | options)
    driver, hits = Driver(llm, answers, monkeypatch), metric(llm, "prefix_cache_hits")
    with Acceptance(llm) as seen:
        hold(driver)
    hits = metric(llm, "prefix_cache_hits") - hits
    print(
        f"\n{kind}: {dict(driver.seen)}, {hits} tokens from the prefix cache, {seen.accepted} of {seen.drafted} drafts"
    )
    assert driver.seen["schedules"] >= PROFILE.max_examples
    if PROFILE.max_examples >= 75:
        assert all(driver.seen[event] for event in EVENTS)
        assert 0 < seen.accepted < seen.drafted
        assert (hits > 0) == (kind != "no prefix cache")


FEW = settings(PROFILE, max_examples=20, derandomize=True, phases=[Phase.generate], report_multiple_bugs=False)


def test_the_property_catches_a_draft_accepted_wrongly_and_a_block_that_leaks(engines, models, answers, monkeypatch):
    """vLLM's `synthetic` verification accepts every draft; then the scheduler keeps a block of what has ended."""
    lossy = std(rejection_sample_method="synthetic", synthetic_acceptance_rates=[1.0, 1.0, 1.0])
    llm = engines(models("llama"), lossy, **ROOM)
    driver = Driver(llm, answers, monkeypatch)
    with pytest.raises(AssertionError, match="other tokens than plain vLLM's"):
        hold(driver, FEW)
    free = driver.pool.free_blocks
    monkeypatch.setattr(driver.pool, "free_blocks", lambda blocks, *args, **kw: free(list(blocks)[1:], *args, **kw))
    with pytest.raises(AssertionError, match="a block has leaked"):
        hold(driver, FEW)
    engines.close()
