"""The sides that `speed.py` times: an engine in a process of its own for each, and how they take turns."""

import itertools
import multiprocessing
import os
import random
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import typer
from speed_rows import ROOT, Group, Row, mha_model, questions

from vllm_std.patches.benchmark import without_std
from vllm_std.tools.demo.servers import fast_cpu_dtype

PLAIN = {"plain V1": "0", "plain V2": "1"}  # and its VLLM_USE_V2_MODEL_RUNNER


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

    dtype = fast_cpu_dtype()
    cache = int(group.kv * 2**30) * (2 if dtype == "float32" else 1)
    options: dict[str, Any] = {"dtype": dtype, "block_size": 32, "kv_cache_memory_bytes": cache}
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
    """Seconds, median seconds to a first token, tokens, drafted and accepted tokens, and the answers."""
    from vllm_std.patches import offline

    before, begun = counted(llm), time.perf_counter()
    outputs = offline.one_by_one(llm, inputs, params, apart) if apart else offline.generate(llm, inputs, params)
    seconds = time.perf_counter() - begun
    drafted, accepted = (after - then for after, then in zip(counted(llm), before))
    answers = [output.outputs[0] for output in outputs]
    return {
        "seconds": seconds, "to_first_token": statistics.median(map(offline.seconds_to_first_token, outputs)),
        "drafted": drafted, "accepted": accepted,
        "tokens": sum(len(answer.token_ids) for answer in answers),
        "prompt_tokens": [len(output.prompt_token_ids) for output in outputs],
        "ids": [list(answer.token_ids) for answer in answers], "texts": [answer.text for answer in answers],
    }  # fmt: skip


def counted(llm) -> list[int]:
    values = {metric.name: getattr(metric, "value", 0) for metric in llm.get_metrics()}
    return [values.get(f"vllm:spec_decode_num_{what}_tokens", 0) for what in ("draft", "accepted")]


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
                facts = ("seconds", "to_first_token", "tokens", "drafted", "accepted")
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
