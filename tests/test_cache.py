"""The KV cache as vLLM manages it: shared, reset, in 8 bits, asleep; and weights in 8 bits."""

import pytest
import torch
from helpers import Acceptance, greedy, scheduler_of, speculator_of, std, token_prompts
from tiny_models import noise_video, video_prompt

pytestmark = pytest.mark.engine

SHARED = token_prompts([200])[0]["prompt_token_ids"]
FAMILY = [{"prompt_token_ids": SHARED[:cut] + tail["prompt_token_ids"]} for cut, tail in
          zip((200, 200, 160, 97, 200), token_prompts([30, 64, 5, 90, 1], seed=1))]  # fmt: skip


def free_blocks(llm) -> int:
    return scheduler_of(llm).kv_cache_manager.block_pool.get_num_free_blocks()


@pytest.mark.supports("prefix caching, on and off", "prefixes shared in a batch")
@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.versions
def test_prefixes_shared_in_one_batch(engines, plain, models, caching):
    """In the first run they are computed beside each other, in the second they come from the cache."""
    expected = plain(models("llama"), FAMILY)
    llm = engines(models("llama"), std(), enable_prefix_caching=caching)
    before = free_blocks(llm)
    for _ in range(2):
        with Acceptance(llm) as seen:
            assert greedy(llm, FAMILY) == expected
        assert 0 < seen.accepted < seen.drafted
    assert free_blocks(llm) == before


@pytest.mark.supports("prefixes shared in a batch")
def test_a_video_shared_by_several_questions(engines, plain, models):
    frames = noise_video(24, seed=5)
    prompts = [video_prompt("qwen2_vl", frames) for _ in range(3)]
    for prompt, question in zip(prompts, ("What happens?", "Who?", "Why does it happen, and how does it end?")):
        prompt["prompt"] = prompt["prompt"].replace("What happens in the video?", question)
    expected = plain(models("qwen2_vl"), prompts)
    llm = engines(models("qwen2_vl"), std())
    for _ in range(2):
        assert greedy(llm, prompts) == expected


@pytest.mark.supports("/reset_prefix_cache")
@pytest.mark.versions
def test_the_prefix_cache_can_be_reset(engines, plain, models):
    expected = plain(models("llama"), FAMILY)
    llm = engines(models("llama"), std())
    rates = []
    for _ in range(2):
        with Acceptance(llm) as seen:
            assert greedy(llm, FAMILY) == expected
        rates.append((seen.drafted, seen.accepted))
        assert llm.reset_prefix_cache()
    assert rates[0] == rates[1]


@pytest.mark.supports("sleep and wake (contents of a sleeping cache lost, simulated)")
@pytest.mark.versions
def test_a_cache_that_lost_its_contents_starts_afresh(engines, plain, models):
    """As after sleeping: vLLM drops what the cache held and resets the prefix cache; what std keeps of it is stale."""
    expected = plain(models("llama"), FAMILY)
    llm = engines(models("llama"), std())
    llm.reset_prefix_cache()
    with Acceptance(llm) as before:
        assert greedy(llm, FAMILY) == expected
    llm.sleep(level=1)  # on CPU vLLM says that it cannot, and does nothing
    llm.wake_up()
    llm.reset_prefix_cache()
    speculator = speculator_of(llm)
    for layer in speculator.std.target.layers:
        layer.kv_cache[1:].random_(-1000, 1000)
    selector = speculator.std.selector
    for kept in (speculator.std.queries.kept, selector.summaries.means, selector.ranking.scores):
        kept.fill_(torch.nan)
    with Acceptance(llm) as after:
        assert greedy(llm, FAMILY) == expected
    assert (after.drafted, after.accepted) == (before.drafted, before.accepted)


@pytest.mark.supports("fp8 KV cache")
@pytest.mark.parametrize("dtype", ["fp8", "fp8_e5m2"])
def test_an_fp8_cache(engines, plain, models, dtype):
    prompts = token_prompts([45, 300, 97], seed=2)
    expected = plain(models("llama"), prompts, kv_cache_dtype=dtype)
    llm = engines(models("llama"), std(), kv_cache_dtype=dtype)
    with Acceptance(llm) as seen:
        assert greedy(llm, prompts) == expected
    assert 0 < seen.accepted < seen.drafted


@pytest.mark.supports("quantised weights (W8A8 of compressed-tensors)")
def test_quantised_weights(engines, plain, models):
    prompts = token_prompts([45, 300, 97], seed=2)
    half = dict(dtype="bfloat16")  # the CPU kernel has no other
    expected = plain(models("llama_w8a8"), prompts, **half)
    assert expected != plain(models("llama"), prompts, **half)
    llm = engines(models("llama_w8a8"), std(), **half)
    with Acceptance(llm) as seen:
        assert greedy(llm, prompts) == expected
    assert 0 < seen.accepted < seen.drafted
