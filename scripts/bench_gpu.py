"""std against plain vLLM on one GPU: decode tokens/s and where a round's time goes, one JSON line for each cell.

    python scripts/bench_gpu.py --part shape --minutes 9 --out results.jsonl      # again, until nothing is missing
    python scripts/bench_gpu.py --part smollm2 --model .cache/smollm2 --out results.jsonl
    python scripts/bench_gpu.py --part video --out results.jsonl
    python scripts/bench_gpu.py --sync-check --out results.jsonl
    python scripts/bench_plot.py results.jsonl --out plots

Parts: `shape`, a Qwen2-VL-7B decoder with dummy weights, and `mha`, Vicuna-7B's shape, both with synthetic acceptance:
vLLM accepts each draft with probability `--rates`, whatever it is. `smollm2` and `video` are trained models with real
prompts and real acceptance; their answers are compared with plain vLLM's, and vLLM's own draft model method (draft =
target) shows how far bf16 alone lets answers part. Prompts are in the prefix cache before anything is timed.

Cells that are in --out are skipped; each engine is a process of its own, so none can spoil what others have measured.
--tiny tries the same code on tiny models, on a CPU too, where its times say nothing about a GPU.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import groupby, product
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_USE_V2_MODEL_RUNNER": "1", "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1", "VLLM_HOST_IP": "127.0.0.1", "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
}  # fmt: skip
DECODER = dict(
    hidden_act="silu", rms_norm_eps=1e-6, tie_word_embeddings=False, max_position_embeddings=40960,
    initializer_range=0.02, bos_token_id=0, eos_token_id=1, dtype="bfloat16", use_cache=True,
)  # fmt: skip
QWEN2_7B = dict(
    DECODER, architectures=["Qwen2ForCausalLM"], model_type="qwen2", rope_theta=1e6, use_sliding_window=False,
    hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4,
    vocab_size=152064,
)  # fmt: skip
VICUNA_7B = dict(
    DECODER, architectures=["LlamaForCausalLM"], model_type="llama", rope_theta=1e4, hidden_size=4096,
    intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=32, vocab_size=32000,
)  # fmt: skip
TINY = dict(
    hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    vocab_size=704,
)  # fmt: skip
SHAPES = {"shape": QWEN2_7B, "mha": VICUNA_7B}
REAL = ("smollm2", "video")
# part: (batches, contexts in tokens, draft lengths, top_k in tokens)
GRIDS = {
    "shape": ((1, 8, 32), (2048, 8192, 32000), (0, 1, 3, 5, 7), 1024),
    "mha": ((1, 8, 32), (2048, 8192, 32000), (0, 1, 3, 5, 7), 1024),
    "smollm2": ((64,), (7500,), (3, 5, 7), 1024),
    "video": ((64,), (8100,), (3, 5, 7), 192),
}
TINY_GRIDS = {
    "shape": ((1, 2), (256,), (0, 1, 3), 192),
    "mha": ((2,), (256,), (0, 2), 192),
    "smollm2": ((2,), (2000,), (3,), 512),
    "video": ((2,), (900,), (3,), 192),
}
RATES, TEMPERATURES, REPEATS, ANSWER = (0.9, 0.95, 0.8), (0.0, 0.7), 3, 128
LEAST = 2  # minutes below which no engine is started: it would be up just in time to end


@dataclass(frozen=True)
class Cell:
    """rate: synthetic acceptance of each draft, None where none is drafted or acceptance is real."""

    part: str
    engine: str
    batch: int
    context: int
    gamma: int
    rate: float | None
    temperature: float

    def __str__(self) -> str:
        rate = f" p={self.rate}" if self.rate else ""
        warm = f" T={self.temperature}" if self.temperature else ""
        return f"{self.part} {self.engine} {self.batch} x {self.context:,} gamma={self.gamma}{rate}{warm}"


# ------------------------------------------------------------ what to measure


def cells(args) -> list[Cell]:
    """All cells of a part, most wanted first: rates one after the other, long contexts and large batches first."""
    grid = list(product(sorted(args.contexts, reverse=True), sorted(args.batches, reverse=True)))
    if args.part in REAL:
        lengths = [("plain", 0), *(("std", gamma) for gamma in args.gammas if gamma)]
        lengths += [(args.yardstick, max(args.gammas))] if args.yardstick != "none" else []
        return [
            Cell(args.part, engine, batch, context, gamma, None, temperature)
            for (engine, gamma), (context, batch), temperature in product(lengths, grid, TEMPERATURES)
        ]
    found = [Cell(args.part, "plain", batch, context, 0, None, 0.0) for context, batch in grid]
    for rate, (context, batch), gamma in product(args.rates, grid, args.gammas):
        found.append(Cell(args.part, "std", batch, context, gamma, rate if gamma else None, 0.0))
    return list(dict.fromkeys(found))


def settings(args) -> dict:
    """What records must share to be compared; `source` only where std is measured."""
    files = sorted((HERE.parent / "vllm_std").rglob("*.py"))
    source = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]
    return {"top_k": args.top_k, "tiny": args.tiny, "device": args.device, "vllm": args.vllm, "source": source}


def missing(args) -> list[Cell]:
    """The cells of this run that have no record yet, made with the same settings."""
    from bench_plot import load

    wanted, names = settings(args), [field.name for field in dataclasses.fields(Cell)]
    done = set()
    for row in load(args.out):
        differs = {name for name, value in wanted.items() if row.get(name) != value}
        if not differs or (row.get("engine") == "plain" and differs <= {"source", "top_k"}):
            done.add(Cell(*(row.get(name) for name in names)))
    return [cell for cell in cells(args) if cell not in done]


def machine() -> dict:
    """Device and versions, asked in a process of its own, so that this one holds no GPU memory."""
    script = """
import json, torch
device, driver = "cpu", None
if torch.cuda.is_available():
    device = torch.cuda.get_device_name()
    try:
        from vllm.third_party import pynvml
        pynvml.nvmlInit()
        driver = pynvml.nvmlSystemGetDriverVersion()
    except Exception as error:
        driver = f"unknown ({type(error).__name__})"
from importlib.metadata import version
import vllm, triton
print(json.dumps({"device": device, "driver": driver, "vllm": vllm.__version__, "torch": torch.__version__,
                  "triton": triton.__version__, "cuda": torch.version.cuda}))
"""
    asked = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    if asked.returncode:
        sys.exit(f"vLLM cannot be imported here: {asked.stderr.strip().splitlines()[-1]}")
    return json.loads(asked.stdout.splitlines()[-1])


# ------------------------------------------------------------ engines


def start(engine: str, args, folder: Path):
    """An engine of one process: `plain`, `std`, or a yardstick of vLLM's own."""
    from vllm import LLM

    gamma, part = max(args.gammas), args.part
    model = str(args.model or HERE.parent / "vllm_std/demo/tiny-sign-vlm")
    if part in SHAPES:
        shape = SHAPES[part] | (TINY if args.tiny else {})
        (folder / "config.json").write_text(json.dumps(shape))
        model = str(folder)
    room = 1024 if part in SHAPES else 512
    options = dict(
        model=model, max_model_len=min(max(args.contexts) + room, 8192 if part == "smollm2" else 10**6),
        max_num_seqs=max(*args.batches, len(args.gammas)), enable_prefix_caching=True, disable_log_stats=False,
        max_num_batched_tokens=16384 if part == "video" else 8192, dtype="bfloat16", gpu_memory_utilization=args.memory,
        compilation_config={"cudagraph_capture_sizes": capture_sizes(args)}, seed=0,
    )  # fmt: skip
    if part in SHAPES:
        options |= dict(load_format="dummy", skip_tokenizer_init=True)
    if part == "video":
        options["mm_processor_cache_gb"] = 0  # prompts are rendered once and sent again: they must carry their videos
    if args.device == "cpu":
        del options["gpu_memory_utilization"], options["compilation_config"]
        options |= dict(dtype="float32", enforce_eager=True, kv_cache_memory_bytes=2**28, block_size=32)
    return LLM(speculative_config=speculation(engine, args, model, gamma), **options)


def capture_sizes(args) -> list[int]:
    """Tokens of each pass that a cell can make, so that all of them are full CUDA graphs and start-up stays short."""
    # Real answers end one by one, so the batch shrinks.
    smaller = (1, 2, 4, 8, 16, 24, 32, 48) if args.part in REAL else ()
    counts = {*args.batches, *(count for count in smaller if count < max(args.batches))}
    return sorted({count * (1 + gamma) for count in counts for gamma in (0, *args.gammas)})


def speculation(engine: str, args, model: str, gamma: int) -> dict | None:
    if engine == "plain":
        return None
    if engine == "ngram":
        return {"method": "ngram", "num_speculative_tokens": gamma, "prompt_lookup_max": 4}
    if engine == "draft_model":
        return {"method": "draft_model", "model": model, "num_speculative_tokens": gamma}
    from vllm_std import config
    from vllm_std.plugin import register

    register()  # the package need not be installed
    # Adaptive, so that vLLM captures the verifying pass of each length; which one is drafted is set between cells.
    config.LENGTHS = (0, *args.gammas)
    options = {"method": "std", "num_speculative_tokens": gamma, "top_k": args.top_k, "calibrate": False}
    if args.part in SHAPES:
        rates = [args.rates[0] ** position for position in range(1, gamma + 1)]
        options |= {"rejection_sample_method": "synthetic", "synthetic_acceptance_rates": rates}
    return options


class Engine:
    """An engine with a probe in it. `switch` chooses draft length and acceptance while no request runs."""

    def __init__(self, name: str, args, folder: Path):
        from bench_rounds import Probe

        from vllm_std.seams.lab import Bench

        begun = time.perf_counter()
        self.name, self.args, self.llm = name, args, start(name, args, folder)
        self.seconds_to_start = round(time.perf_counter() - begun, 1)
        self.bench = Bench(self.llm)
        core = self.llm.llm_engine.engine_core.engine_core
        self.runner, self.scheduler = core.model_executor.driver_worker.worker.model_runner, core.scheduler
        self.probe = Probe(self.runner, std=name == "std")

    def switch(self, gamma: int, rate: float | None) -> None:
        if self.name != "std":
            return
        self.scheduler.controller, self.scheduler.gamma = None, gamma
        if rate is not None:
            # Chances of each draft given that those before it were accepted; the sampler reads them on the device.
            self.runner.rejection_sampler.synthetic_conditional_rates.fill_(rate)

    def generate(self, inputs: list, tokens: int, seed: int = 0, temperature: float = 0.0, whole: bool = True) -> list:
        """Decode all at once. whole: to the last token, past the end of the answer; seed: also of synthetic luck."""
        from vllm import SamplingParams

        from vllm_std.seams import lab

        params = [
            SamplingParams(
                temperature=temperature, max_tokens=tokens, ignore_eos=whole, seed=1000 * seed + number,
                detokenize=False,
            )
            for number in range(len(inputs))
        ]  # fmt: skip
        self.probe.begin()
        outputs = lab.generate(self.bench.llm, inputs, params)
        self.probe.clock.idle()
        return outputs

    def facts(self) -> dict:
        config = self.llm.llm_engine.vllm_config
        facts = self.bench.facts() | {
            "kv_cache_tokens": self.bench.cache_tokens(), "seconds_to_start": self.seconds_to_start,
            "async_scheduling": bool(config.scheduler_config.async_scheduling),
            "cudagraph_mode": config.compilation_config.cudagraph_mode.name,
        }  # fmt: skip
        return facts | {"max_gamma": config.num_speculative_tokens if config.speculative_config else 0}


# ------------------------------------------------------------ prompts


def random_prompts(engine: Engine, batch: int, context: int) -> list:
    """Each shorter context is the beginning of the longer ones, so that one prefill serves them all."""
    vocabulary = engine.llm.llm_engine.vllm_config.model_config.get_vocab_size()
    made = []
    for number in range(batch):
        rng = random.Random(number)
        made.append({"prompt_token_ids": [rng.randrange(2, vocabulary) for _ in range(context)]})
    return list(engine.llm._preprocess_cmpl(made))


def text_prompts(engine: Engine, batch: int, context: int) -> list:
    from prompts import QUESTIONS, Maker

    from vllm_std.lab.prompts import Prompt
    from vllm_std.seams import lab

    make, tasks = Maker(engine.llm.get_tokenizer(), context - 500, context, seed=0), list(QUESTIONS)
    asked = [make(tasks[number % len(tasks)], context, number)["prompt"] for number in range(batch)]
    return [lab.render(engine.bench.llm, Prompt("", None, [{"role": "user", "content": text}])) for text in asked]


def video_prompts(engine: Engine, batch: int, context: int) -> list:
    """Questions about videos of `context` visual tokens, a video each."""
    from vllm_std.demo.sign_video import SignVideo

    made = []
    for number in range(batch):
        video = SignVideo(context // 18, seed=number)
        question = video.ask(("list", "range", "follow")[number % 3], 8)["question"]
        made += engine.llm._preprocess_cmpl([video.prompt(question)])
    return made


PROMPTS = {"smollm2": text_prompts, "video": video_prompts}


# ------------------------------------------------------------ one engine, cell by cell


def measure(name: str, args) -> None:
    """Measure what is missing on one engine; no new cell after args.until (seconds since 1970)."""
    todo = [cell for cell in missing(args) if cell.engine == name]
    refuse_busy_gpu(args)
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(name, args, Path(folder))
        shared = json.loads(args.machine) | settings(args) | engine.facts()
        for (context, batch), group in groupby(todo, lambda cell: (cell.context, cell.batch)):
            inputs = None
            for cell in group:
                if time.time() > args.until:
                    return print("out of time; run the same command again for the rest", flush=True)
                if inputs is None:
                    inputs = PROMPTS.get(args.part, random_prompts)(engine, batch, context)
                    engine.generate(inputs, tokens=1)
                begun = time.time()
                record = asdict(cell) | shared | measure_cell(engine, cell, inputs)
                add(args.out, record | {"cell_s": round(time.time() - begun, 1)})
                print(f"{cell}: {described(record)} ({time.time() - begun:.0f} s)", flush=True)


def refuse_busy_gpu(args) -> None:
    if args.device == "cpu":
        return
    import torch

    free, total = torch.cuda.mem_get_info()
    if free < 0.95 * total:
        sys.exit(f"{(total - free) / 2**30:.1f} GiB of the GPU are taken: nothing else may run while this measures.")


def add(out: Path, record: dict) -> None:
    with out.open("a") as file:
        file.write(json.dumps(record) + "\n")


def described(record: dict) -> str:
    if "skipped" in record:
        return record["skipped"]
    accepted = f", accepted {record['acceptance']:.2f}" if record["acceptance"] is not None else ""
    speed, ms = record["tokens_per_s"]["median"], record["ms_per_round"]["median"]
    return f"{speed:.1f} tokens/s, {ms:.2f} ms a round{accepted}"


def measure_cell(engine: Engine, cell: Cell, inputs: list) -> dict:
    """One record: every figure in it is measured."""
    length = max(len(one["prompt_token_ids"]) for one in inputs)
    rounds, tokens = plan(cell, engine.args.tiny)
    needed, room = cell.batch * (length + tokens + cell.gamma + 2), engine.bench.cache_tokens()
    if needed > room:
        return {"skipped": f"does not fit: {needed:,} tokens, and the KV cache holds {room:,}"}
    engine.switch(cell.gamma, cell.rate)
    # Compiles whatever is compiled at first use, and leaves the prompts in the cache if something has pushed them out.
    engine.generate(inputs, tokens=min(tokens, 8 * (cell.gamma + 1)))
    repeats = [repeat(engine, cell, inputs, tokens, number) for number in range(2 if engine.args.tiny else REPEATS)]
    return {"source_of_figures": "measured", "rounds_planned": rounds, **summary(cell, repeats), "repeats": repeats}


def plan(cell: Cell, tiny: bool) -> tuple[int, int]:
    """(rounds to time, tokens of each request): enough tokens that a lucky request does not end the window early."""
    if cell.part in REAL:
        return 0, ANSWER // 4 if tiny else ANSWER
    rounds = 16 if tiny else {1: 96, 8: 64}.get(cell.batch, 48)
    rate = cell.rate or 0.0
    return rounds, int((rounds + 5) * sum(rate**position for position in range(cell.gamma + 1))) + cell.gamma


def repeat(engine: Engine, cell: Cell, inputs: list, tokens: int, number: int) -> dict:
    from bench_rounds import answering, full_batch, timing

    begun = time.perf_counter()
    outputs = engine.generate(inputs, tokens, number, cell.temperature, whole=cell.part not in REAL)
    row = {"wall_s": round(time.perf_counter() - begun, 4), "cached": min(out.num_cached_tokens for out in outputs)}
    clock, rounds = engine.probe.clock, engine.probe.rounds
    if cell.part in REAL:
        row |= answering(clock, rounds, outputs, cell.gamma)
        row |= {"answers": [list(out.outputs[0].token_ids) for out in outputs]}
    else:
        stretch = full_batch(rounds, cell.batch, cell.gamma)
        if len(stretch) < 8:
            raise RuntimeError(f"{cell}: of {len(rounds)} rounds only {len(stretch)} had the full batch decoding.")
        row |= timing(clock, stretch)
    shortest = min(len(out.prompt_token_ids) for out in outputs)
    row["all_cached"] = row["cached"] >= shortest - 2 * engine.bench.facts()["block_size"]
    return row


def summary(cell: Cell, repeats: list[dict]) -> dict:
    """Median and spread over the repeats; the answers of the first, where greedy, and whether others are the same."""
    from bench_rounds import spread

    drafted, accepted = (sum(row[name] for row in repeats) for name in ("drafted", "accepted"))
    requests = sum(row.get("request_rounds", row["rounds"] * cell.batch) for row in repeats)
    stages = repeats[0]["split_ms"]
    found = {
        "tokens_per_s": spread([row["tokens_per_s"] for row in repeats]),
        "ms_per_round": spread([row["ms_per_round"] for row in repeats]),
        "split_ms": {stage: spread([row["split_ms"][stage] for row in repeats]) for stage in stages},
        "acceptance_is": ("synthetic" if cell.rate is not None else "real") if drafted else None,
        "acceptance": round(accepted / drafted, 4) if drafted else None,
        "tokens_per_request_round": round(1 + accepted / requests, 4) if requests else 1.0,
        "all_cached": all(row["all_cached"] for row in repeats),
    }
    answers = [row.pop("answers", None) for row in repeats]
    if answers[0] is not None and cell.temperature == 0:
        found |= {"answers": answers[0], "repeats_equal": all(given == answers[0] for given in answers)}
    return found


# ------------------------------------------------------------ does a round wait for the device?


def check_sync(args) -> None:
    """Record whether std waits for the device: in rounds without a prompt, and then while a prompt is read."""
    record = {"part": "sync", "ok": True, "gammas": args.gammas} | json.loads(args.machine) | settings(args)
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine("std", args, Path(folder))
        try:
            for doing in watched_work(engine, args):
                print(f"no synchronisation {doing}", flush=True)
        except RuntimeError as error:
            ours = [at for at in traceback.extract_tb(error.__traceback__) if "vllm" in at.filename]
            where = [f"{at.filename}:{at.lineno} {at.line}" for at in ours[-6:]]
            record |= {"ok": False, "error": str(error), "at": where}
            raise
        finally:
            add(args.out, record)


def watched_work(engine: Engine, args) -> Iterator[str]:
    """Runs under VLLM_GPU_SYNC_CHECK=error, which makes vLLM raise RuntimeError; says what each of them did."""
    from vllm.utils import gpu_sync_debug as debug

    inputs = random_prompts(engine, max(args.batches), min(args.contexts))
    for gamma in args.gammas:
        engine.switch(gamma, args.rates[0] if gamma else None)
        debug._sync_check_enabled, engine.probe.after_sample = False, lambda: None
        engine.generate(inputs, tokens=8 * (gamma + 1))
        # From the sampler of the prompts' last pass on, all that a worker does is a round.
        engine.probe.after_sample = lambda: setattr(debug, "_sync_check_enabled", True)
        engine.generate(inputs, tokens=24 * (gamma + 1))
        yield f"in {len(engine.probe.rounds) - 1} rounds of gamma {gamma}"
    engine.generate(random_prompts(engine, 2, min(args.contexts) + 100), tokens=1)
    yield "while a prompt is read"


# ------------------------------------------------------------ command line


def child(args, name: str) -> bool:
    """Measure on one engine in a process of its own; whether it ended well."""
    print(f"-- {name}", flush=True)
    environment = ENVIRONMENT | os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    if name == "sync":
        environment["VLLM_GPU_SYNC_CHECK"] = "error"
    if args.device == "cpu":
        environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "bench_gpu.py"), *sys.argv[1:], "--engine", name, "--machine", args.machine]
    code = subprocess.run([*command, "--until", str(args.until)], env=environment).returncode
    if code:
        print(f"the process of engine {name} ended with code {code}; what it had measured is kept", flush=True)
    return code == 0


def run(args) -> bool:
    """All engines that have cells to measure, as long as there is time; whether all went well."""
    if args.sync_check:
        return child(args, "sync")
    well = True
    for name in dict.fromkeys(cell.engine for cell in missing(args)):
        if time.time() > args.until - 60 * min(LEAST, args.minutes / 2):
            print(f"too little time is left to start {name}; run the same command again", flush=True)
            break
        well &= child(args, name)
    return well


def numbers(kind):
    return lambda text: tuple(dict.fromkeys(kind(part) for part in text.split(",")))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=list(GRIDS), default="shape")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, added to")
    parser.add_argument("--minutes", type=float, default=9, help="start no new cell after so long")
    parser.add_argument("--batches", type=numbers(int), help="requests, such as 1,8,32")
    parser.add_argument("--contexts", type=numbers(int), help="tokens, such as 2048,8192,32000")
    parser.add_argument("--gammas", type=numbers(int), help="draft lengths, such as 0,1,3,5,7")
    parser.add_argument("--rates", type=numbers(float), default=RATES, help="synthetic; all cells get the first")
    parser.add_argument("--top-k", type=int, help="tokens a draft attends to")
    parser.add_argument("--model", type=Path, help="folder of SmolLM2 (part smollm2)")
    parser.add_argument("--yardstick", choices=("draft_model", "ngram", "none"), default="draft_model")
    parser.add_argument("--memory", type=float, default=0.94, help="share of GPU memory that vLLM may take")
    parser.add_argument("--sync-check", action="store_true", help="only: does a round wait for the device? (GPU)")
    parser.add_argument("--tiny", action="store_true", help="tiny models and grids, to try this script")
    for hidden in ("--engine", "--machine"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    return completed(parser, parser.parse_args())


def completed(parser, args) -> argparse.Namespace:
    """Defaults of the part, and what a process of its own is told of the machine."""
    grid = (TINY_GRIDS if args.tiny else GRIDS)[args.part]
    for name, default in zip(("batches", "contexts", "gammas", "top_k"), grid):
        if getattr(args, name) is None:
            setattr(args, name, default)
    if args.part == "smollm2" and args.model is None:
        args.model = HERE.parent / ".cache/smollm2"
    if args.part == "smollm2" and not (args.model / "config.json").exists():
        parser.error(f"there is no model in {args.model}: make it with python scripts/text_model.py {args.model}")
    if max(args.gammas) < 1:
        parser.error("--gammas needs one of at least 1: std cannot start with less")
    args.until = args.until or time.time() + 60 * args.minutes
    args.machine = args.machine or json.dumps(machine())
    known = json.loads(args.machine)
    args.device, args.vllm = known["device"], known["vllm"]
    if args.device == "cpu" and not args.tiny:
        parser.error("there is no GPU here: --tiny tries this script without one")
    if args.device == "cpu" and args.sync_check:
        parser.error("--sync-check needs a GPU: vLLM looks for synchronisation on CUDA only")
    return args


def main() -> None:
    args = arguments()
    if args.engine == "sync":
        return check_sync(args)
    if args.engine:
        return measure(args.engine, args)
    from bench_plot import load, report

    if args.device == "cpu":
        print("No GPU: times below are a CPU's, to see that this script works, and not to be reported.")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    well = run(args)
    print(report([row for row in load(args.out) if row["part"] == args.part]))
    left = 0 if args.sync_check else len(missing(args))
    print(f"{left} cells of this part are missing: run the same command again" if left else "nothing is missing")
    sys.exit(not well)


if __name__ == "__main__":
    main()
