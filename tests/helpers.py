"""For tests: vLLM engines in this process, what is inside of them, what they drafted, and prompts."""

import gc
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
SIGN_MODEL = ROOT / "vllm_std/tools/demo/tiny-sign-vlm"
SMOLLM2 = ROOT / ".cache/smollm2"
MODELS = ROOT / ".cache/test_models"


COLLECT, FREEZE = gc.collect, gc.freeze
# vLLM collects garbage a dozen times in each start and end of an engine, here in a heap that holds all modules: nine
# tenths of a start. `Engines.close` collects once, and leaves what has outlived an engine out of the next collection.
gc.collect = gc.freeze = gc.unfreeze = lambda *generation: 0


class Engines:
    """Starts `vllm.LLM` engines and keeps the last one, because start-up costs more than most tests."""

    def __init__(self):
        self.key, self.llm = None, None

    def __call__(self, model, speculative_config=None, **options):
        """An engine for `model`; the same arguments give the engine that is already up.

        Another engine ends this one, and it must be gone by then: do not hold on to it across a second call.
        """
        from vllm import LLM

        key = repr((model, speculative_config, sorted(options.items())))
        if key != self.key:
            self.close()
            settings = dict(
                dtype="float32", enforce_eager=True, max_model_len=1024, max_num_seqs=8, block_size=32,
                kv_cache_memory_bytes=2**28, skip_mm_profiling=True, disable_log_stats=False,
                speculative_config=speculative_config,
            )  # fmt: skip
            self.llm = LLM(model=str(model), **settings | options)
            self.key = key
        return self.llm

    def close(self):
        self.key = self.llm = None
        COLLECT()
        FREEZE()


def runner_of(llm):
    """The model runner inside an in-process engine."""
    return llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner


def speculator_of(llm):
    return runner_of(llm).speculator


def counters(llm) -> tuple[int, int]:
    """(drafted, accepted) tokens since the engine started, as vLLM counts them."""
    values = {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}
    prefix = "vllm:spec_decode_num_"
    return values.get(prefix + "draft_tokens", 0), values.get(prefix + "accepted_tokens", 0)


class Acceptance:
    """with Acceptance(llm) as seen: ...; then seen.drafted, seen.accepted, seen.rate of that stretch."""

    def __init__(self, llm):
        self.llm = llm

    def __enter__(self):
        self.before = counters(self.llm)
        return self

    def __exit__(self, *exc):
        after = counters(self.llm)
        self.drafted, self.accepted = (int(a - b) for a, b in zip(after, self.before))
        self.rate = self.accepted / self.drafted if self.drafted else None


def scheduler_of(llm):
    """The scheduler of an in-process engine."""
    return llm.llm_engine.engine_core.engine_core.scheduler


def greedy(llm, prompts, max_tokens=32, **options) -> list[list[int]]:
    """Greedy token ids of each prompt."""
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, **options)
    return [list(out.outputs[0].token_ids) for out in llm.generate(prompts, params, use_tqdm=False)]


def token_prompts(lengths, vocab=600, seed=0) -> list[dict]:
    """Prompts of random token ids."""
    generator = torch.Generator().manual_seed(seed)
    return [{"prompt_token_ids": torch.randint(5, vocab, (n,), generator=generator).tolist()} for n in lengths]


def std(**options) -> dict:
    """A small `speculative_config`: blocks of 32 tokens, so a mask of 96 has one block to choose; drafts always."""
    small = {"num_speculative_tokens": 3, "top_k": 96, "sink": 1, "recent": 32}
    return {"method": "std", "adaptive": False} | small | options


def draft_lengths(llm, monkeypatch, turns: list[int]) -> list[int]:
    """Have the scheduler ask for these draft lengths in turn, as it does when they follow the load; those asked for."""
    from vllm_std.control import Choice

    asked: list[int] = []

    def choose(requests, kv):
        asked.append(turns[len(asked) % len(turns)])
        return Choice(asked[-1], "fixed")

    monkeypatch.setattr(scheduler_of(llm).std, "choose", choose)
    return asked


def keep_async(monkeypatch) -> None:
    """vLLM switches async scheduling off on CPU; not from now on."""
    from vllm.platforms import current_platform

    platform = type(current_platform)
    update = platform.check_and_update_config

    def check_and_update_config(_, vllm_config):
        update(vllm_config)
        vllm_config.scheduler_config.async_scheduling = True

    monkeypatch.setattr(platform, "check_and_update_config", classmethod(check_and_update_config))
