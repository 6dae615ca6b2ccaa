"""An engine in this process with a stopwatch in it, for one side of a part."""

import time

import torch
from gpu.options import Setup, engine_options
from gpu.parts import TimedCell
from gpu.prompts import PROMPTS, random_prompts
from gpu.stopwatch import Stopwatch
from gpu.timing import answer_totals, full_batch_steps, totals
from vllm import LLM, SamplingParams
from vllm.utils import gpu_sync_debug
from vllm.v1.worker.gpu.model_runner import GPUModelRunner

from vllm_std.control import FixedLength
from vllm_std.patches import lab, offline

FEWEST_STEPS = 8  # with the full batch decoding; a cell with fewer is a failure
FEWEST_STEPS_TINY = 4  # the same of a tiny model
ANSWER_ROOM = 16  # tokens of KV cache for each request, beside context and answer


class Engine:
    """`load` a row of the part, then `run` its cells."""

    def __init__(self, side: str, setup: Setup):
        begun = time.perf_counter()
        weights_loaded = note_weights()
        self.side = side
        self.setup = setup
        self.llm = LLM(**engine_options(side, setup))
        now = time.perf_counter()
        self.seconds = {"to_start": now - begun, "from_weights_to_ready": now - weights_loaded[-1]}
        self.bench = lab.Bench(self.llm)
        core = self.llm.llm_engine.engine_core.engine_core
        self.scheduler = core.scheduler
        self.runner = core.model_executor.driver_worker.worker.model_runner
        if side.startswith("std"):
            self.controller = self.scheduler.std.controller
            proposals = self.llm.llm_engine.vllm_config.speculative_config.proposals
            self.fixed = FixedLength(self.bench.max_gamma, proposals)
        self.stopwatch = Stopwatch(self.runner, std=side.startswith("std"))
        self.inputs: list = []

    def facts(self) -> dict:
        """What a record of the start says."""
        config = self.llm.llm_engine.vllm_config
        graphs = {
            "verify": self.runner.cudagraph_manager,
            "select": getattr(getattr(self.runner.speculator, "std", None), "select_graphs", None),
            "draft": getattr(self.runner.speculator, "decode_cudagraph_manager", None),
        }
        free, total = torch.cuda.mem_get_info() if torch.cuda.is_available() else (0, 0)
        return self.bench.facts() | {
            "seconds": {name: round(seconds, 1) for name, seconds in self.seconds.items()},
            "kv_blocks": config.cache_config.num_gpu_blocks,
            "kv_tokens": self.bench.cache_tokens(),
            "full_graphs": {name: len(manager.graphs) for name, manager in graphs.items() if manager is not None},
            "gpu_gib_taken": round((total - free) / 2**30, 2),
            "max_num_seqs": config.scheduler_config.max_num_seqs,
            "async_scheduling": bool(config.scheduler_config.async_scheduling),
            "cudagraph_mode": config.compilation_config.cudagraph_mode.name,
            "costs": getattr(getattr(config.speculative_config, "costs", None), "source", None),
        }

    def load(self, batch: int, context: int) -> str | None:
        """Bring the prompts of a row into the prefix cache; says why not, where it cannot."""
        needed = batch * (context + self.setup.part.tokens + ANSWER_ROOM)
        room = self.bench.cache_tokens()
        if needed > room:
            return f"does not fit: {needed:,} tokens with the answers, and the KV cache holds {room:,}"
        self.inputs = PROMPTS.get(self.setup.part.model, random_prompts)(self.llm, batch, context)
        self.generate(1)
        return None

    def run(self, cell: TimedCell, turn: int, warm_up: bool) -> dict:
        """Time a cell once. warm_up: answer once before, so that nothing is compiled while time is taken."""
        part = self.setup.part
        self.switch(cell)
        if warm_up:
            self.generate(part.tokens // 4)
        begun = time.perf_counter()
        outputs = self.generate(part.tokens, turn, cell.temperature)
        row = {"turn": turn, "wall_s": round(time.perf_counter() - begun, 4)}
        row |= self._answers(outputs) if part.trained else self._full_batch(cell)
        cached = [out.num_cached_tokens - len(out.prompt_token_ids) for out in outputs]
        return row | {"all_cached": min(cached) >= -2 * self.bench.facts()["block_size"]}

    def _answers(self, outputs: list) -> dict:
        longest = self.bench.max_gamma or 1
        row = answer_totals(self.stopwatch.clock, self.stopwatch.steps, outputs, longest)
        return row | {"answers": [list(out.outputs[0].token_ids) for out in outputs]}

    def _full_batch(self, cell: TimedCell) -> dict:
        steps = self.stopwatch.steps
        any_length = cell.gamma == "adaptive" or self.side == "ngram"
        full = full_batch_steps(steps, cell.batch, None if any_length else cell.gamma)
        if len(full) < (FEWEST_STEPS_TINY if self.setup.part.tiny else FEWEST_STEPS):
            raise RuntimeError(f"{cell}: of {len(steps)} steps only {len(full)} had the full batch decoding.")
        return totals(self.stopwatch.clock, full)

    def switch(self, cell: TimedCell) -> None:
        if self.side.startswith("std"):
            adaptive = cell.gamma == "adaptive"
            self.scheduler.std.controller = self.controller if adaptive else self.fixed
            self.fixed.length = self.bench.max_gamma if adaptive else cell.gamma
        if cell.rate is not None:
            # Chances of each draft given that those before it were accepted; the sampler reads them on the device.
            self.runner.rejection_sampler.synthetic_conditional_rates.fill_(cell.rate)

    def generate(self, tokens: int, seed: int = 0, temperature: float = 0.0) -> list:
        """Answer all prompts at once. With dummy weights to the last token; seed: of synthetic luck as well."""
        ignore_eos = not self.setup.part.trained
        shared = dict(max_tokens=tokens, temperature=temperature, ignore_eos=ignore_eos, detokenize=False)
        params = [SamplingParams(seed=1000 * seed + number, **shared) for number in range(len(self.inputs))]
        self.stopwatch.begin()
        outputs = offline.generate(self.llm, self.inputs, params)
        self.stopwatch.clock.idle()
        return outputs

    def watch_for_waits(self) -> list[str]:
        """Decode under VLLM_GPU_SYNC_CHECK=error, which makes vLLM raise where a step waits for the device."""
        (batch, context), *_ = self.setup.part.rows
        self.load(batch, context)
        says = []
        for cell in self.setup.part.cells(self.side):
            self.switch(cell)
            gpu_sync_debug._sync_check_enabled = False
            self.stopwatch.after_sample = lambda: None
            self.generate(32)
            # From the sampler of the prompts' last pass on, all that a worker does belongs to decoding.
            self.stopwatch.after_sample = lambda: setattr(gpu_sync_debug, "_sync_check_enabled", True)
            self.generate(64)
            says.append(f"no wait in {len(self.stopwatch.steps) - 1} steps of {cell}")
        self.inputs = random_prompts(self.llm, 2, context + 100)
        self.generate(1)
        return [*says, "no wait while a prompt is read"]


def note_weights() -> list[float]:
    """A list that gets the time at which the weights of the engine to come are loaded."""
    times = [time.perf_counter()]
    original = GPUModelRunner.load_model

    def load_model(self, *args, **kwargs):
        original(self, *args, **kwargs)
        times.append(time.perf_counter())

    GPUModelRunner.load_model = load_model
    return times
