"""The speed table of docs/speed.md: plain vLLM without the plugin, on Model Runner V1 and V2, and std, by the clock.

    python scripts/bench/speed.py run --out docs/records/speed        # a JSON for each row
    python scripts/bench/speed.py table                                  # the table from these; --check only compares

Each side is an engine in a process of its own, with the same model, prompts and arguments. They take turns, so what
disturbs the machine disturbs all; an idle one waits for its turn. All prompts are in the prefix cache and were answered
once before, so what is timed is decoding. A ratio is that of one turn, over the plain side that is faster by median.
"""

import itertools
import json
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import marked
import typer

from vllm_std.patches.benchmark import without_std
from vllm_std.tools.bench.ratio import ratio_of
from vllm_std.tools.demo import MODEL
from vllm_std.tools.demo.sign_video import write_video
from vllm_std.tools.prompts import Prompt, from_file, from_videos

ROOT = Path(__file__).resolve().parents[2]
RESULTS, PAGE, CACHE = ROOT / "docs/records/speed", ROOT / "docs/speed.md", ROOT / ".cache/speed"
BEGIN, END = "<!-- speed: begin (scripts/bench/speed.py table) -->", "<!-- speed: end -->"
PLAIN = {"plain V1": "0", "plain V2": "1"}  # and its VLLM_USE_V2_MODEL_RUNNER
VIDEO = {"media_io_kwargs": {"video": {"video_backend": "opencv", "num_frames": -1}}, "max_num_batched_tokens": 32768}
VIDEO |= {"allowed_local_media_path": str(CACHE), "max_model_len": 32768, "max_num_seqs": 16}


@dataclass(frozen=True)
class Row:
    """batch requests of `context`: what their prompts are, for the table. apart: tokens of all answers between the
    arrival of one request and of the next; 0: they come together."""

    name: str
    batch: int
    context: str
    prompts: str  # a folder of videos or a file, in the cache
    apart: int = 0


@dataclass(frozen=True)
class Group:
    """Rows that share engines. kv: GiB of KV cache; synthetic: acceptance that is not measured but set."""

    title: str
    model: str
    kv: float
    engine: dict[str, Any]
    rows: list[Row]
    synthetic: float | None = None


def mha(acceptance: float) -> Group:
    room = {"max_model_len": 8704, "max_num_seqs": 4, "max_num_batched_tokens": 8704}
    name = f"mha-4x8k-p{100 * acceptance:.0f}"
    return Group("4 KV heads of 128, random weights", "mha", 0.6, room, [Row(name, 4, "8K", "random")], acceptance)


GROUPS = [
    Group(
        "bundled video model", MODEL, 0.55, VIDEO,
        [
            *(Row(f"video-{batch}x8k", batch, "8K", "videos-8k") for batch in (1, 4, 8, 16)),
            Row("video-8x16k", 8, "16K", "videos-16k"),
            Row("video-4x31k", 4, "31K", "videos-31k"),
            Row("video-ramp", 16, "8K, one after the other", "videos-8k", apart=60),
        ],
    ),
    Group(
        "bundled video model, all drafts rejected", MODEL, 0.55, VIDEO,
        [Row("video-8x8k-rejected", 8, "8K", "videos-8k")], 0.0,
    ),
    Group(
        "SmolLM2-135M-Instruct", ".cache/smollm2", 1.6, {"max_model_len": 8192, "max_num_seqs": 8},
        [Row("smollm2-1x7k", 1, "7.5K", "text.jsonl"), Row("smollm2-8x7k", 8, "7.5K", "text.jsonl")],
    ),
    mha(0.9),
    mha(0.95),
]  # fmt: skip


# ------------------------------------------------------------ what is asked


def prepare() -> None:
    """Make the videos and prompts that are not there yet."""
    for name, scenes, patches, count in (("8k", 450, 2, 16), ("16k", 900, 2, 8), ("31k", 860, 4, 4)):
        folder = CACHE / f"videos-{name}"
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            if not (path := folder / f"signs-{number:02d}.mp4").with_suffix(".json").exists():
                write_video(path, scenes, patches, seed=number + 1, sentences=16)
    if not (CACHE / "text.jsonl").exists():
        command = [sys.executable, str(ROOT / "scripts/bench/prompts.py"), "--tokenizer", str(ROOT / ".cache/smollm2")]
        subprocess.run([*command, "--out", str(CACHE / "text.jsonl"), "--count", "40"], check=True)


def questions(row: Row) -> list[Prompt]:
    """A video or text of its own for each request; the tasks take turns."""
    if row.prompts.endswith(".jsonl"):  # the longest, which are those of 7.5K
        found = sorted(from_file(CACHE / row.prompts), key=lambda prompt: -len(prompt.messages[-1]["content"]))
        return found[: row.batch]
    return [prompt for number, prompt in enumerate(from_videos(CACHE / row.prompts)) if number % 3 == number // 3 % 3][
        : row.batch
    ]


def mha_model() -> str:
    """A text model with as many KV heads as query heads, of size 128, and weights that say nothing."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = CACHE / "mha"
    if not (folder / "config.json").exists():
        torch.manual_seed(0)
        shape = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 4}
        shape |= {"num_key_value_heads": 4, "head_dim": 128, "vocab_size": 1024, "max_position_embeddings": 32768}
        LlamaForCausalLM(LlamaConfig(**shape)).to(torch.bfloat16).save_pretrained(folder)
    return str(folder)


# ------------------------------------------------------------ one side, in a process of its own


def side(pipe, group: Group, std: dict[str, Any] | None) -> None:
    """Answer ("load", row, tokens) with what an untimed run gave, and each ("run",) with that of a timed one."""
    llm = engine(group, std)
    pipe.send("ready")
    inputs, params, apart = [], [], 0
    while (asked := pipe.recv())[0] != "end":
        if asked[0] == "load":
            inputs, params = load(llm, *asked[1:])
            apart = asked[1].apart
            run(llm, inputs, params)  # the prompts; the next has them in the prefix cache
        pipe.send(run(llm, inputs, params, apart))
    pipe.close()
    os._exit(0)  # engines in this process have nothing that must end in order


def engine(group: Group, std: dict[str, Any] | None):
    from vllm import LLM

    options: dict[str, Any] = {"dtype": "bfloat16", "block_size": 32, "kv_cache_memory_bytes": int(group.kv * 2**30)}
    options |= {"enable_prefix_caching": True, "mm_processor_cache_gb": 0, "disable_log_stats": False}
    model = mha_model() if group.model == "mha" else str(ROOT / group.model)
    if group.model == "mha":
        options["skip_tokenizer_init"] = True
    if std is not None:
        options["speculative_config"] = speculative(group, std)
    return LLM(model=model, **options | group.engine)


def speculative(group: Group, std: dict[str, Any]) -> dict[str, Any]:
    options = {"method": "std"} | std
    if group.synthetic is not None:
        rates = [round(group.synthetic ** (position + 1), 4) for position in range(std["num_speculative_tokens"])]
        options |= {"rejection_sample_method": "synthetic", "synthetic_acceptance_rates": rates}
    return options


def load(llm, row: Row, tokens: int):
    from vllm import SamplingParams

    from vllm_std.patches import offline

    ends = {"ignore_eos": True, "detokenize": row.prompts != "random", "temperature": 0.0}
    params = [SamplingParams(max_tokens=tokens, **ends) for _ in range(row.batch)]
    if row.prompts == "random":
        draw = random.Random(0)
        return [
            {"type": "token", "prompt_token_ids": draw.choices(range(5, 1000), k=8100)} for _ in range(row.batch)
        ], params
    return [offline.render(llm, prompt.messages, prompt.id) for prompt in questions(row)], params


def run(llm, inputs: list, params: list, apart: int = 0) -> dict[str, Any]:
    """Seconds, tokens, drafted and accepted tokens, and the answers."""
    from vllm_std.patches import offline

    before, begun = counted(llm), time.perf_counter()
    outputs = offline.one_by_one(llm, inputs, params, apart) if apart else offline.generate(llm, inputs, params)
    seconds = time.perf_counter() - begun
    drafted, accepted = (after - then for after, then in zip(counted(llm), before))
    answers = [output.outputs[0] for output in outputs]
    return {
        "seconds": seconds, "tokens": sum(len(answer.token_ids) for answer in answers), "drafted": drafted,
        "accepted": accepted, "prompt_tokens": [len(output.prompt_token_ids) for output in outputs],
        "ids": [list(answer.token_ids) for answer in answers], "texts": [answer.text for answer in answers],
    }  # fmt: skip


def counted(llm) -> list[int]:
    values = {metric.name: getattr(metric, "value", 0) for metric in llm.get_metrics()}
    return [values.get(f"vllm:spec_decode_num_{what}_tokens", 0) for what in ("draft", "accepted")]


# ------------------------------------------------------------ sides that take turns


@dataclass
class Turns:
    """Processes of the sides of a group; leaving the block ends them."""

    group: Group
    std: dict[str, dict[str, Any]]  # options of each side of std, by its name
    pipes: dict[str, Any] = field(default_factory=dict)

    def __enter__(self):
        spawn, kept = multiprocessing.get_context("spawn"), dict(os.environ)
        for name, runner in {**PLAIN, **dict.fromkeys(self.std, "1")}.items():
            os.environ.update(VLLM_USE_V2_MODEL_RUNNER=runner, VLLM_ENABLE_V1_MULTIPROCESSING="0")
            os.environ.update(VLLM_CPU_OMP_THREADS_BIND="nobind", VLLM_LOGGING_LEVEL="ERROR", HF_HUB_OFFLINE="1")
            if name in PLAIN:
                os.environ["VLLM_PLUGINS"] = without_std()
            self.pipes[name], there = spawn.Pipe()
            args = there, self.group, self.std.get(name)
            spawn.Process(target=side, args=args, daemon=True).start()
            there.close()
            self.pipes[name].recv()  # std times its steps at start-up, so nothing else may run then
            os.environ.clear()
            os.environ.update(kept)
        return self

    def __exit__(self, *_):
        for pipe in self.pipes.values():
            pipe.send(("end",))

    def ask(self, name: str, *what) -> dict[str, Any]:
        self.pipes[name].send(what)
        return self.pipes[name].recv()

    def measure(self, row: Row, tokens: int, repeats: int) -> dict[str, Any]:
        """A record of the row."""
        for name in self.pipes:
            begun = time.perf_counter()
            self.ask(name, "load", row, tokens)
            typer.echo(f"{row.name}: {name} loaded in {time.perf_counter() - begun:.0f} s", err=True)
        runs, orders, answers = [], itertools.cycle(itertools.permutations(self.pipes)), {}
        for repeat in range(repeats):
            for name in next(orders):
                got = self.ask(name, "run")
                answers.setdefault(name, got)
                facts = ("seconds", "tokens", "drafted", "accepted")
                runs.append({"side": name, "repeat": repeat} | {fact: got[fact] for fact in facts})
        return {"runs": runs, "prompt_tokens": answers["plain V2"]["prompt_tokens"]} | compared(row, answers)


def compared(row: Row, answers: dict[str, dict]) -> dict[str, Any]:
    """How many answers of std are those of plain, of plain those of the other runner, and right as far as they go."""
    ids = {name: got["ids"] for name, got in answers.items()}
    equal = {name: sum(map(list.__eq__, ids[name], ids["plain V2"])) for name in ids}
    found: dict[str, Any] = {"equal_to_plain_v2": equal}
    if row.prompts.startswith("videos"):
        known = [prompt.answer or "" for prompt in questions(row)]
        found["right"] = {
            name: sum(a.startswith(b) or b.startswith(a) for a, b in zip(known, got["texts"]) if b)
            for name, got in answers.items()
        }
    return found


app = typer.Typer(help=__doc__, rich_markup_mode=None)


@app.command("run")
def main(
    out: Annotated[Path, typer.Option(help="folder for the records")] = RESULTS,
    only: Annotated[str, typer.Option(help="rows whose name has one of these, separated by commas")] = "",
    tokens: Annotated[int, typer.Option(help="of each answer")] = 256,
    repeats: Annotated[int, typer.Option(help="turns of each side")] = 5,
    std: Annotated[list[str], typer.Option(help="options of std, as JSON; repeatable, each is a side")] = ["{}"],
) -> None:
    """Measure rows and write a record of each."""
    prepare()
    out.mkdir(parents=True, exist_ok=True)
    from vllm_std.config import StdConfig

    length = {"num_speculative_tokens": StdConfig.num_speculative_tokens}  # its default, so that a record says it
    options = {"std" if text == "{}" else f"std {text}": length | json.loads(text) for text in std}
    for group in GROUPS:
        rows = [row for row in group.rows if any(part in row.name for part in only.split(","))]
        if not rows:
            continue
        with Turns(group, options) as turns:
            for row in rows:
                found = turns.measure(row, tokens, repeats)
                record = {"row": asdict(row), "title": group.title, "synthetic_acceptance": group.synthetic}
                record |= {"std": options, "answer_tokens": tokens, **hardware(), **found}
                (out / f"{row.name}.json").write_text(json.dumps(record, indent=1) + "\n")
                typer.echo("\n".join(lines(record)))


def hardware() -> dict[str, Any]:
    from importlib.metadata import version

    import torch

    from vllm_std import __version__
    from vllm_std.patches.wrapping import vllm_version

    cpu = Path("/proc/cpuinfo").read_text()
    name = next(text.split(":")[1].strip() for text in cpu.splitlines() if "model name" in text)
    amx = " with AMX" if "amx_tile" in cpu else ""
    return {
        "device": f"{len(os.sched_getaffinity(0))} cores of {name}{amx}",
        "dtype": "bfloat16", "threads": os.environ.get("OMP_NUM_THREADS"), "block_size": 32,
        "vllm": vllm_version(), "vllm_std": __version__, "torch": torch.__version__, "numba": version("numba"),
    }  # fmt: skip


# ------------------------------------------------------------ the table


def rates(record: dict, name: str) -> list[float]:
    """Tokens per second of each turn."""
    return [run["tokens"] / run["seconds"] for run in record["runs"] if run["side"] == name]


def ratios(record: dict, name: str) -> list[float]:
    """std over the faster plain side, turn by turn."""
    plain = max((rates(record, plain) for plain in PLAIN), key=statistics.median)
    return [std / other for std, other in zip(rates(record, name), plain)]


def lines(record: dict) -> list[str]:
    """A line of the table for each side of std."""
    return [line(record, name) for name in record["std"]]


def line(record: dict, name: str) -> str:
    row, ratio = record["row"], ratio_of(ratios(record, name))
    medians = [statistics.median(rates(record, side)) for side in (*PLAIN, name)]
    drafted, accepted, tokens = (
        sum(run[what] for run in record["runs"] if run["side"] == name) for what in ("drafted", "accepted", "tokens")
    )
    share = f"{accepted / drafted:.3f}" if drafted else "none drafted"
    synthetic = record["synthetic_acceptance"] is not None
    if synthetic:
        share += f" (synthetic, {record['synthetic_acceptance']})"
    equal = f"{record['equal_to_plain_v2'][name]} of {row['batch']}" if not synthetic else "-"
    right = f"{record['right'][name]} of {row['batch']}" if "right" in record and not synthetic else "-"
    cells = [
        record["title"], f"{row['batch']} x {row['context']}",
        str(record["std"][name]["num_speculative_tokens"]),
        ratio.markdown(),
        *(f"{rate:.0f}" for rate in medians), share, f"{tokens / max(tokens - accepted, 1):.1f}", equal, right,
        str(len(rates(record, name))),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


HEAD = (
    "model", "batch x context", "gamma", "std over plain", "V1 tok/s", "V2 tok/s", "std tok/s", "accepted",
    "tokens a pass", "equal answers", "right", "turns",
)  # fmt: skip


def table() -> str:
    names = [row.name for group in GROUPS for row in group.rows]
    records = [json.loads(path.read_text()) for name in names if (path := RESULTS / f"{name}.json").exists()]
    first = records[0]
    said = f"{first['device']}, {first['dtype']}, vLLM {first['vllm']}, torch {first['torch']}; blocks of 32, greedy, "
    said += f"{first['answer_tokens']} tokens an answer; median, lowest and highest of the turns of each side:"
    return "\n".join(
        [said, "", f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|", *itertools.chain(*map(lines, records))]
    )


@app.command("table")
def write(
    check: Annotated[bool, typer.Option(help="Only say whether the page has the table as it is.")] = False,
) -> None:
    """Make the table of the records."""
    marked.write(PAGE, BEGIN, END, table(), check)


if __name__ == "__main__":
    app()
