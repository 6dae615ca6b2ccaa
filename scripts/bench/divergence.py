"""Greedy tokens against plain vLLM's: how often they part, and how near a tie the target was where they did.

    python scripts/bench/divergence.py --out docs/records/divergence.json       # minutes on a CPU
    python scripts/bench/divergence.py --model Qwen/Qwen2.5-7B-Instruct --prompts 64 --tokens 256 --out h100.json

In bf16 a pass over several tokens rounds otherwise than one over a single token, whatever has drafted them. So std
stands here beside vLLM's own draft model method (draft = target) and n-gram drafts of the same length, and beside plain
vLLM in a smaller batch, which is the noise floor. In float32 std must not part at all. After a parting two answers have
different contexts: only tokens up to it count.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy import stats

CELLS = {  # name: (what it is compared with, its own options)
    "plain": (None, {}),
    "plain, smaller batch": ("plain", {"batch": "other_batch"}),
    "std": ("plain", {"method": "std"}),
    "draft_model": ("plain", {"method": "draft_model"}),
    "ngram": ("plain", {"method": "ngram"}),
    "plain, float32": (None, {"dtype": "float32"}),
    "std, float32": ("plain, float32", {"dtype": "float32", "method": "std"}),
}
CANDIDATES = 5  # logprobs kept of each position of a plain answer


# ------------------------------------------------------------ counting


def parting(ours: list[int], theirs: list[int]) -> int | None:
    """Index of the first token that differs, or where one answer has ended and the other goes on."""
    for index, (a, b) in enumerate(zip(ours, theirs)):
        if a != b:
            return index
    return None if len(ours) == len(theirs) else min(len(ours), len(theirs))


def gap(candidates: list[list], ours: int | None, theirs: int) -> float | None:
    """Logprob of plain vLLM's token less that of ours, both in plain vLLM's eyes; None where ours is far behind."""
    logprobs = dict((token, logprob) for token, logprob in candidates)
    return round(logprobs[theirs] - logprobs[ours], 4) if ours in logprobs else None


def row(ours: dict, theirs: dict) -> dict:
    """One line of the table. Rates are of partings in compared tokens; the interval is Poisson's, exact, 95 %."""
    at = [parting(*pair) for pair in zip(ours["tokens"], theirs["tokens"], strict=True)]
    compared = sum(len(mine) if place is None else place + 1 for place, mine in zip(at, ours["tokens"]))
    gaps = []
    for number, place in enumerate(at):
        answers = ours["tokens"][number], theirs["tokens"][number]
        if place is not None and place < min(map(len, answers)):
            gaps.append(gap(theirs["logprobs"][number][place], answers[0][place], answers[1][place]))
    parted = sum(place is not None for place in at)
    low, high = stats.chi2.ppf(0.025, 2 * parted) / 2 if parted else 0.0, stats.chi2.ppf(0.975, 2 * parted + 2) / 2
    known = [value for value in gaps if value is not None]
    return {
        "prompts": len(at), "parted": parted, "tokens": compared,
        "per_1000": round(1000 * parted / compared, 2),
        "interval": [round(1000 * float(end) / compared, 2) for end in (low, high)],
        "acceptance": round(ours["accepted"] / ours["drafted"], 3) if ours["drafted"] else None,
        "gap_median": float(np.median(known)) if known else None, "gap_max": max(known, default=None),
        "gaps_unknown": len(gaps) - len(known),
    }  # fmt: skip


def summary(raw: dict) -> dict[str, dict]:
    cells = raw["cells"]
    return {
        name: row(cell, cells[cell["against"]])
        for name, cell in cells.items()
        if "error" not in cell and cell["against"] is not None
    }


def table(rows: dict[str, dict]) -> str:
    lines = [
        f"{'':24} {'parted':>8} {'tokens':>7} {'per 1,000':>10} {'95 %':>15} {'accepted':>9} {'gap: median, max':>18}"
    ]
    for name, r in rows.items():
        accepted = "-" if r["acceptance"] is None else f"{r['acceptance']:.3f}"
        gaps = "-" if r["gap_max"] is None else f"{r['gap_median']:.3f}, {r['gap_max']:.3f}"
        low, high = r["interval"]
        parted, ends = f"{r['parted']}/{r['prompts']}", f"[{low:.2f}, {high:.2f}]"
        lines.append(f"{name:24} {parted:>8} {r['tokens']:7} {r['per_1000']:10.2f} {ends:>15} {accepted:>9} {gaps:>18}")
    return "\n".join(lines)


# ------------------------------------------------------------ engines


def method(name: str | None, args) -> dict | None:
    drafts = {"method": name, "num_speculative_tokens": args.gamma}
    return {
        None: None,
        "std": drafts | {"adaptive": False, "top_k": args.top_k},
        "draft_model": drafts | {"model": args.model},
        "ngram": drafts | {"prompt_lookup_min": 2, "prompt_lookup_max": 4},
    }[name]


def answer(args, prompts: list[list[int]], own: dict) -> dict:
    """What one engine says to all prompts; own: its entry in CELLS."""
    import torch
    import vllm

    cpu = not torch.cuda.is_available()
    room = dict(enforce_eager=True, block_size=32, kv_cache_memory_bytes=2**30) if cpu else {}
    llm = vllm.LLM(
        model=args.model, dtype=own.get("dtype", args.dtype), speculative_config=method(own.get("method"), args),
        max_num_seqs=vars(args)[own.get("batch", "batch")], max_model_len=args.max_model_len, disable_log_stats=False,
        **room,
    )  # fmt: skip
    logprobs = None if "method" in own else CANDIDATES
    params = vllm.SamplingParams(temperature=0, max_tokens=args.tokens, logprobs=logprobs)
    outputs = [out.outputs[0] for out in llm.generate([{"prompt_token_ids": p} for p in prompts], params)]
    counted = {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}
    made = {"runner": "V2" if llm.llm_engine.vllm_config.use_v2_model_runner else "V1", "vllm": vllm.__version__}
    made["device"] = "cpu" if cpu else torch.cuda.get_device_name()
    for name in ("draft", "accepted"):
        made[name.replace("draft", "drafted")] = int(counted.get(f"vllm:spec_decode_num_{name}_tokens", 0))
    made["tokens"] = [list(out.token_ids) for out in outputs]
    if logprobs:
        made["logprobs"] = [
            [[[token, round(seen.logprob, 4)] for token, seen in place.items()] for place in out.logprobs]
            for out in outputs
        ]
    return made


def start(args, name: str, prompts: list[list[int]], runner: str) -> dict:
    """One cell in a process of its own; where it fails, its last words."""
    against, own = CELLS[name]
    env = dict(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_NO_USAGE_STATS="1", VLLM_LOGGING_LEVEL="ERROR")
    env = os.environ | env | {"VLLM_USE_V2_MODEL_RUNNER": "1" if runner == "V2" else "0"}
    with tempfile.TemporaryDirectory() as folder:
        asked, made = Path(folder) / "asked.json", Path(folder) / "made.json"
        asked.write_text(
            json.dumps(
                {
                    "args": {k: v for k, v in vars(args).items() if k not in ("out", "cell")},
                    "prompts": prompts,
                    "own": own,
                }
            )
        )
        done = subprocess.run(
            [sys.executable, __file__, "--cell", asked, made], env=env, stderr=subprocess.PIPE, text=True
        )
        if done.returncode == 0:
            return {"against": against} | json.loads(made.read_text())
    errors = [line.strip() for line in done.stderr.splitlines() if "Error" in line]
    return {"against": against, "runner": runner, "error": (errors or [done.stderr[-500:]])[-1]}


def run(args) -> dict:
    """All cells; a method that Model Runner V2 does not run is compared on V1, with plain vLLM there."""
    from prompts import QUESTIONS, Maker
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    make, tasks = Maker(tokenizer, args.min_tokens, args.max_tokens, seed=0), list(QUESTIONS)
    aims = np.linspace(args.min_tokens, args.max_tokens, args.prompts).astype(int)
    texts = [make(tasks[number % len(tasks)], int(aim), number)["prompt"] for number, aim in enumerate(aims)]
    chats = [[{"role": "user", "content": text}] for text in texts]
    prompts = [tokenizer.apply_chat_template(c, add_generation_prompt=True, return_dict=False) for c in chats]
    cells, errors = {}, {}
    for name in CELLS:
        begun = time.time()
        cells[name] = start(args, name, prompts, "V2")
        if "error" in cells[name]:
            errors[name] = cells[name]["error"]
            print(f"{name}: {errors[name]}", file=sys.stderr)
            if "plain, runner V1" not in cells:
                cells["plain, runner V1"] = start(args, "plain", prompts, "V1")
            cells[name] = start(args, name, prompts, "V1") | {"against": "plain, runner V1"}
        print(f"{name}: {time.time() - begun:.0f} s", file=sys.stderr)
    settings = {key: value for key, value in vars(args).items() if key not in ("out", "cell")}
    return {"settings": settings, "prompt_tokens": list(map(len, prompts)), "errors_on_v2": errors, "cells": cells}


def record(raw: dict) -> str:
    """JSON of the settings and a line for each row of the table; answers themselves are not kept."""
    head = {key: value for key, value in raw.items() if key != "cells"}
    rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(found)}" for name, found in summary(raw).items())
    return json.dumps(head)[:-1] + ',\n "summary": {\n' + rows + "\n}}\n"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=".cache/smollm2", help="folder, or name on the hub")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=64, help="of an answer, at most")
    parser.add_argument("--min-tokens", type=int, default=600, help="of a prompt")
    parser.add_argument("--max-tokens", type=int, default=1500)
    parser.add_argument("--max-model-len", type=int, default=2048)
    parser.add_argument("--gamma", type=int, default=5)
    parser.add_argument("--top-k", type=int, default=256, help="std's budget, in tokens")
    parser.add_argument("--batch", type=int, default=8, help="requests at a time")
    parser.add_argument("--other-batch", type=int, default=3, help="the same, of the noise floor")
    parser.add_argument("--out", type=Path, help="settings and the table, as JSON")
    parser.add_argument("--cell", nargs=2, type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse()
    if args.cell:
        asked = json.loads(args.cell[0].read_text())
        made = answer(argparse.Namespace(**asked["args"]), asked["prompts"], asked["own"])
        args.cell[1].write_text(json.dumps(made))
        return
    raw = run(args)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(record(raw))
    print(table(summary(raw)))
    for name, error in raw["errors_on_v2"].items():
        print(f"{name} does not run on Model Runner V2 here: {error}")


if __name__ == "__main__":
    main()
