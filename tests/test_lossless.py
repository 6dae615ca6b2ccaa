"""Greedy tokens with std equal plain vLLM's, in float32, whatever the policy, draft length, budget or prompt."""

import pytest
from helpers import ROOT, SIGN_MODEL, SMOLLM2, Acceptance, draft_lengths, greedy, keep_async, std, token_prompts
from tiny_models import SUPPORTED_TEXT, SUPPORTED_VIDEO, noise_video, video_prompt
from vllm import SamplingParams

from vllm_std.tools.demo.sign_video import SignVideo

MIXED = token_prompts([45, 300, 1, 620, 97])
POLICIES = ["verify", "text", "streaming"]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.engine
@pytest.mark.versions
def test_every_policy_in_a_batch_of_mixed_lengths(engines, plain, models, policy):
    expected = plain(models("llama"), MIXED)
    llm = engines(models("llama"), std(selection=policy))
    with Acceptance(llm) as seen:
        assert greedy(llm, MIXED) == expected
    assert 0 < seen.accepted < seen.drafted


@pytest.mark.parametrize(
    "options",
    [{"top_k": 0.25, "top_k_floor": 96}, {"refresh": 3}, {"top_k": 0.5, "refresh": 2}],
    ids=str,
)
@pytest.mark.engine
@pytest.mark.versions
def test_every_kind_of_budget(engines, plain, models, options):
    expected = plain(models("llama"), MIXED)
    llm = engines(models("llama"), std(**options))
    with Acceptance(llm) as seen:
        assert greedy(llm, MIXED) == expected
    assert 0 < seen.accepted < seen.drafted


@pytest.mark.parametrize("gamma", range(1, 9))
@pytest.mark.engine
def test_every_draft_length(engines, plain, models, gamma):
    expected = plain(models("llama"), MIXED)
    assert greedy(engines(models("llama"), std(num_speculative_tokens=gamma)), MIXED) == expected


@pytest.mark.engine
def test_a_budget_so_small_that_most_drafts_are_rejected(engines, plain, models):
    prompts = token_prompts([900, 800, 850])
    expected = plain(models("qwen3"), prompts, 40)
    llm = engines(models("qwen3"), std(selection="streaming", num_speculative_tokens=8))
    with Acceptance(llm) as seen:
        assert greedy(llm, prompts, 40) == expected
    assert seen.rate < 0.5


@pytest.mark.supports("text models: Llama, Qwen2, Qwen3 architectures")
@pytest.mark.parametrize("name", SUPPORTED_TEXT)
@pytest.mark.engine
def test_text_models(engines, plain, models, name):
    expected = plain(models(name), MIXED)
    assert greedy(engines(models(name), std()), MIXED) == expected
    llm = engines(models(name), std(top_k=1024))
    with Acceptance(llm) as seen:
        assert greedy(llm, MIXED) == expected
    assert seen.rate == 1.0, "a mask that keeps everything drafts what the target says"


@pytest.mark.supports("video models: Qwen2-VL, Qwen2.5-VL, Qwen3-VL, LLaVA-OneVision, LLaVA-NeXT-Video architectures")
@pytest.mark.parametrize("name", SUPPORTED_VIDEO)
@pytest.mark.engine
def test_video_models(engines, plain, models, name):
    """M-RoPE (Qwen) and plain positions (LLaVA): a wrong draft position would cost drafts."""
    frames = 8 if name == "llava_next_video" else 48
    prompts = [video_prompt(name, noise_video(frames, seed)) for seed in range(2)] + MIXED[:2]
    expected = plain(models(name), prompts)
    assert greedy(engines(models(name), std()), prompts) == expected
    llm = engines(models(name), std(top_k=1024))
    with Acceptance(llm) as seen:
        assert greedy(llm, prompts) == expected
    assert seen.rate == 1.0


@pytest.mark.supports("trained models: SmolLM2-135M, the bundled video model")
def test_trained_text_model(engines, plain):
    """SmolLM2-135M on real text."""
    text = (ROOT / "tests/source_text.txt").read_text()
    prompts = [text[:1800] + "\nThe function above", "Once upon a time there was"]
    expected = plain(SMOLLM2, prompts, 24)
    llm = engines(SMOLLM2, std(top_k=256))
    with Acceptance(llm) as seen:
        assert greedy(llm, prompts, 24) == expected
    assert seen.rate > 0.5


@pytest.mark.supports("trained models: SmolLM2-135M, the bundled video model")
@pytest.mark.parametrize("policy", POLICIES)
def test_trained_video_model(engines, plain, policy):
    video = SignVideo(scenes=60, seed=3)
    asked = video.ask("list", sentences=4)
    prompts = [video.prompt(asked["question"])]
    room = dict(max_model_len=2048, max_num_batched_tokens=2048)
    expected = plain(SIGN_MODEL, prompts, 80, **room)
    llm = engines(SIGN_MODEL, std(selection=policy, top_k=160, num_speculative_tokens=5), **room)
    assert greedy(llm, prompts, 80) == expected
    assert asked["answer"] in llm.get_tokenizer().decode(expected[0])


@pytest.mark.supports("chunked prefill in tiny chunks", "batches of prefill and decode")
@pytest.mark.parametrize("policy", ["verify", "text"])
@pytest.mark.engine
@pytest.mark.versions
def test_chunked_prefill(engines, plain, models, policy):
    """Prompts cut into chunks of 64 tokens, decoding rows beside them."""
    expected = plain(models("llama"), MIXED)
    llm = engines(models("llama"), std(selection=policy), max_num_batched_tokens=64)
    assert greedy(llm, MIXED) == expected


@pytest.mark.supports("prefix caching, on and off")
@pytest.mark.parametrize("policy", ["verify", "text"])
@pytest.mark.engine
@pytest.mark.versions
def test_prefix_cache_hits(engines, plain, models, policy):
    """A conversation goes on from blocks that drafts once wrote to: the cache serves them, the tokens stay the same."""
    expected = plain(models("llama"), MIXED, 64)
    longer = [
        {"prompt_token_ids": [*prompt["prompt_token_ids"], *answer, 7, 8, 9]} for prompt, answer in zip(MIXED, expected)
    ]
    expected_longer = plain(models("llama"), longer)
    llm = engines(models("llama"), std(selection=policy))
    assert greedy(llm, MIXED, 64) == expected
    hits = {m.name: m.value for m in llm.get_metrics() if m.name == "vllm:prefix_cache_hits"}
    assert greedy(llm, longer) == expected_longer
    after = {m.name: m.value for m in llm.get_metrics() if m.name == "vllm:prefix_cache_hits"}
    cached = after["vllm:prefix_cache_hits"] - hits["vllm:prefix_cache_hits"]
    answers = sum((len(p["prompt_token_ids"]) + 64) // 32 * 32 for p in MIXED)
    assert cached >= answers - 32 * len(MIXED), "the answers themselves came from the cache"


@pytest.mark.supports("async scheduling")
@pytest.mark.engine
@pytest.mark.versions
def test_async_scheduling(engines, plain, models, monkeypatch):
    """The scheduler runs one step ahead of the worker, as it does by default on GPUs, where vLLM allows it."""
    expected = plain(models("llama"), MIXED)
    keep_async(monkeypatch)
    llm = engines(models("llama"), std(), async_scheduling=True)
    assert type(llm.llm_engine.engine_core.engine_core.scheduler).__name__ == "AsyncStdScheduler"
    with Acceptance(llm) as seen:
        assert greedy(llm, MIXED) == expected
    assert seen.accepted > 0
    with monkeypatch.context() as patch, Acceptance(llm) as seen:
        lengths = draft_lengths(llm, patch, [3, 3, 0, 0, 0, 1, 2])
        assert greedy(llm, MIXED, extra_args={"std": True}) == expected
    assert seen.accepted > 0 and lengths.count(0) > 5
    with Acceptance(llm) as seen:
        assert greedy(llm, MIXED, extra_args={"std": False}) == expected
    assert seen.drafted == 0


@pytest.mark.supports("preemption and recompute")
@pytest.mark.engine
def test_preempted_requests_resume(engines, plain, models):
    """A KV cache too small for the load: requests are preempted, recomputed and end with the same tokens."""
    prompts = token_prompts([200, 220, 240, 260], seed=4)
    expected = plain(models("llama"), prompts, 120)
    llm = engines(models("llama"), std(selection="text"), num_gpu_blocks_override=36)
    assert greedy(llm, prompts, 120) == expected
    preemptions = [m.value for m in llm.get_metrics() if m.name == "vllm:num_preemptions"]
    assert preemptions[0] > 0


@pytest.mark.supports("requests that end inside a draft")
@pytest.mark.engine
@pytest.mark.versions
def test_requests_that_end_inside_a_draft(engines, plain, models):
    """Up to max_model_len, and at a stop token that comes in the middle of accepted drafts."""
    prompts = token_prompts([1001, 1015, 990])
    expected = plain(models("llama"), prompts, 64)
    assert [len(tokens) for tokens in expected] == [23, 9, 34]
    stop = {"stop_token_ids": [expected[2][10]]}
    stopped = plain(models("llama"), prompts, 64, stop)
    llm = engines(models("llama"), std(num_speculative_tokens=6))
    assert greedy(llm, prompts, 64) == expected
    assert greedy(llm, prompts, 64, **stop) == stopped


@pytest.mark.parametrize("model", ["llama", "qwen2_vl"])
@pytest.mark.engine
def test_no_launch_of_an_ordinary_round_is_left_to_tritons_interpreter(engines, models, model):
    """It would take most of the time, and what is timed on a CPU would be the interpreter."""
    from triton_cpu.native.launch import launches

    llm = engines(models(model), std())
    asked = [
        {"temperature": 0}, {"temperature": 0.8, "seed": 1}, {"temperature": 1.0, "top_k": 20, "top_p": 0.9},
        {"temperature": 0, "logprobs": 3}, {"temperature": 0.7, "presence_penalty": 1.0, "repetition_penalty": 1.2},
    ]  # fmt: skip
    params = [SamplingParams(max_tokens=24, ignore_eos=True, **options) for options in asked]
    launches.clear()
    llm.generate(token_prompts([40, 150, 60, 33, 90]), params, use_tqdm=False)
    assert len(launches.seconds) > 10 and not launches.interpreted
