"""An engine in this process with a stopwatch in it, for one side of a part of gpu_parts.py."""

import time
from collections.abc import Iterator

from gpu_options import Setup, options_of
from gpu_parts import Cell
from gpu_prompts import PROMPTS, random_prompts


class Engine:
    """`load` a row of the part, then `run` its cells."""

    def __init__(self, side: str, setup: Setup):
        begun = time.perf_counter()
        ready = note_weights()
        options = options_of(side, setup)
        from vllm import LLM

        self.side, self.setup, self.llm = side, setup, LLM(**options)
        self.seconds = {
            "to_start": time.perf_counter() - begun,
            "from_weights_to_ready": time.perf_counter() - ready[-1],
        }
        from gpu_rounds import Probe

        from vllm_std.patches.lab import Bench

        self.bench, self.inputs = Bench(self.llm), []
        core = self.llm.llm_engine.engine_core.engine_core
        self.runner, self.scheduler = core.model_executor.driver_worker.worker.model_runner, core.scheduler
        self.controller = getattr(self.scheduler, "controller", None)
        self.probe = Probe(self.runner, std=side.startswith("std"))

    def facts(self) -> dict:
        import torch

        config, cache = self.llm.llm_engine.vllm_config, self.llm.llm_engine.vllm_config.cache_config
        graphs = {"verify": self.runner.cudagraph_manager} | {
            name: getattr(self.runner.speculator, f"{manager}_cudagraph_manager", None)
            for name, manager in (("select", "select"), ("draft", "decode"))
        }
        free, total = torch.cuda.mem_get_info() if torch.cuda.is_available() else (0, 0)
        return self.bench.facts() | {
            "seconds": {name: round(seconds, 1) for name, seconds in self.seconds.items()},
            "kv_blocks": cache.num_gpu_blocks, "kv_tokens": self.bench.cache_tokens(),
            "full_graphs": {name: len(manager.graphs) for name, manager in graphs.items() if manager is not None},
            "gpu_gib_taken": round((total - free) / 2**30, 2), "max_num_seqs": config.scheduler_config.max_num_seqs,
            "async_scheduling": bool(config.scheduler_config.async_scheduling),
            "cudagraph_mode": config.compilation_config.cudagraph_mode.name,
            "costs": getattr(getattr(config.speculative_config, "costs", None), "source", None),
        }  # fmt: skip

    def load(self, batch: int, context: int) -> str | None:
        """Bring the prompts of a row into the prefix cache; says why not, where it cannot."""
        needed, room = batch * (context + self.setup.part.tokens + 16), self.bench.cache_tokens()
        if needed > room:
            return f"does not fit: {needed:,} tokens with the answers, and the KV cache holds {room:,}"
        self.inputs = PROMPTS.get(self.setup.part.model, random_prompts)(self.llm, batch, context)
        self._generate(1)
        return None

    def run(self, cell: Cell, turn: int, warm_up: bool) -> dict:
        """Time a cell once. warm_up: answer once before, so that nothing is compiled while time is taken."""
        from gpu_rounds import answering, full_batch, timing

        part, tiny = self.setup.part, self.setup.part.tiny
        self._switch(cell)
        if warm_up:
            self._generate(part.tokens // 4)
        begun = time.perf_counter()
        outputs = self._generate(part.tokens, turn, cell.temperature)
        row = {"turn": turn, "wall_s": round(time.perf_counter() - begun, 4)}
        clock, rounds = self.probe.clock, self.probe.rounds
        if part.trained:
            longest = self.bench.max_gamma or 1
            row |= answering(clock, rounds, outputs, longest)
            row |= {"answers": [list(out.outputs[0].token_ids) for out in outputs]}
        else:
            stretch = full_batch(
                rounds, cell.batch, None if cell.gamma == "adaptive" or self.side == "ngram" else cell.gamma
            )
            if len(stretch) < (4 if tiny else 8):
                raise RuntimeError(f"{cell}: of {len(rounds)} rounds only {len(stretch)} had the full batch decoding.")
            row |= timing(clock, stretch)
        cached = [out.num_cached_tokens - len(out.prompt_token_ids) for out in outputs]
        return row | {"all_cached": min(cached) >= -2 * self.bench.facts()["block_size"]}

    def _switch(self, cell: Cell) -> None:
        if self.side.startswith("std"):
            adaptive = cell.gamma == "adaptive"
            self.scheduler.controller = self.controller if adaptive else None
            self.scheduler.gamma = self.bench.max_gamma if adaptive else cell.gamma
        if cell.rate is not None:
            # Chances of each draft given that those before it were accepted; the sampler reads them on the device.
            self.runner.rejection_sampler.synthetic_conditional_rates.fill_(cell.rate)

    def _generate(self, tokens: int, seed: int = 0, temperature: float = 0.0) -> list:
        """Answer all prompts at once. With dummy weights to the last token; seed: of synthetic luck as well."""
        from vllm import SamplingParams

        from vllm_std.patches import lab

        given = dict(
            max_tokens=tokens, temperature=temperature, ignore_eos=not self.setup.part.trained, detokenize=False
        )
        params = [SamplingParams(seed=1000 * seed + number, **given) for number in range(len(self.inputs))]
        self.probe.begin()
        outputs = lab.generate(self.llm, self.inputs, params)
        self.probe.clock.idle()
        return outputs

    def watch_for_waits(self) -> list[str]:
        """Decode under VLLM_GPU_SYNC_CHECK=error, which makes vLLM raise where a round waits for the device."""
        return list(watched_work(self))


def note_weights() -> list[float]:
    """A list that gets the time at which the weights of the engine to come are loaded."""
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner

    times, load = [time.perf_counter()], GPUModelRunner.load_model

    def load_model(self, *args, **kwargs):
        load(self, *args, **kwargs)
        times.append(time.perf_counter())

    GPUModelRunner.load_model = load_model
    return times


def watched_work(engine: Engine) -> Iterator[str]:
    from vllm.utils import gpu_sync_debug as debug

    (batch, context), cells = engine.setup.part.rows[0], engine.setup.part.cells(engine.side)
    engine.load(batch, context)
    for cell in cells:
        engine._switch(cell)
        debug._sync_check_enabled, engine.probe.after_sample = False, lambda: None
        engine._generate(32)
        # From the sampler of the prompts' last pass on, all that a worker does is a round.
        engine.probe.after_sample = lambda: setattr(debug, "_sync_check_enabled", True)
        engine._generate(64)
        yield f"no wait in {len(engine.probe.rounds) - 1} rounds of {cell}"
    engine.inputs = random_prompts(engine.llm, 2, context + 100)
    engine._generate(1)
    yield "no wait while a prompt is read"
