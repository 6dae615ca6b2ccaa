"""Does std answer right on this GPU, under vLLM's defaults (compiled, CUDA graphs for the target, async scheduling)?

    PYTHONPATH=.:scripts python -m gpu.answers [--videos 4] [--json result.json]

Asks the bundled video model about generated videos, greedily, through plain vLLM, through vLLM's own draft model method
(draft = target) and through std with each policy, and prints a table: answers that are right, answers equal to plain
vLLM's, and accepted drafts. In bf16 answers may part at near ties, for the draft model method as well as for std. Each
engine is a process of its own; vllm-std need not be installed. The exit status is 1 where a method fails, or where std
has no draft accepted, or two more wrong answers than plain vLLM.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from vllm_std.tools.demo import MODEL
from vllm_std.tools.demo.sign_video import TASKS, SignVideo

GAMMA = 5  # draft length, in tokens
TOP_K = 192  # tokens that drafts attend to
ALL_BLOCKS = 8192  # tokens: more than any context here
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_USE_V2_MODEL_RUNNER": "1",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
}


def std(**options) -> dict:
    return {"method": "std", "adaptive": False, "num_speculative_tokens": GAMMA, "top_k": TOP_K} | options


METHODS = {
    "plain": None,
    "draft_model": {"method": "draft_model", "model": MODEL, "num_speculative_tokens": GAMMA},
    "std, all blocks": std(top_k=ALL_BLOCKS),
    "std verify": std(),
    "std text": std(selection="text"),
    "std streaming": std(selection="streaming"),
}


def main() -> None:
    args = arguments()
    videos = [SignVideo(args.scenes, seed=seed) for seed in range(args.videos)]
    asked = [(video, video.ask(task, 8)) for video in videos for task in TASKS]
    prompts = [video.prompt(question["question"]) for video, question in asked]
    right = [question["answer"] for _, question in asked]
    of = f"top_k {TOP_K} of {videos[0].visual_tokens} visual tokens"
    print(f"{len(prompts)} answers, gamma {GAMMA}, {of}, {args.dtype}")
    print(f"{'':16} {'right':>6} {'= plain':>8} {'drafted':>8} {'accepted':>9} {'rate':>6} {'s':>7}", flush=True)
    results: dict[str, dict] = {}
    for name, method in METHODS.items():
        try:
            results[name] = alone(method, prompts, dtype=args.dtype, block_size=args.block_size)
        except Exception as error:
            results[name] = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        else:
            compare(results[name], right, results["plain"].get("texts", []))
        print(f"{name:16} {line(results[name])}", flush=True)
        if args.json:
            args.json.write_text(json.dumps(results, indent=1) + "\n")
    sys.exit(not all_well(results))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=4)
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--block-size", type=int, help="default: vLLM's; 32 to try this script without a GPU")
    parser.add_argument("--json", type=Path, help="write all results here")
    return parser.parse_args()


def alone(method: dict | None, prompts: list[dict], **options) -> dict:
    """`run` in a process of its own, which has ended when this returns."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(run, method, prompts, **options).result()


def run(method: dict | None, prompts: list[dict], **options) -> dict:
    """What one engine answers; options: further ones of vLLM."""
    os.dup2(2, 1)  # what vLLM says is not part of the table
    os.environ.update(ENVIRONMENT)
    from vllm import LLM, SamplingParams

    from vllm_std.plugin import register

    register()
    llm = LLM(
        model=MODEL, max_model_len=8192, max_num_batched_tokens=8192, max_num_seqs=16,
        speculative_config=method, disable_log_stats=False, gpu_memory_utilization=0.5, **options,
    )  # fmt: skip
    begun = time.time()
    outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=400), use_tqdm=False)
    seconds = time.time() - begun
    counted = {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}
    return {
        "texts": [out.outputs[0].text for out in outputs],
        "tokens": sum(len(out.outputs[0].token_ids) for out in outputs),
        "drafted": counted.get("vllm:spec_decode_num_draft_tokens", 0),
        "accepted": counted.get("vllm:spec_decode_num_accepted_tokens", 0),
        "seconds": round(seconds, 2),
    }


def compare(result: dict, right: list[str], plain: list[str]) -> None:
    """Note how many texts are right, and how many those of plain vLLM."""
    result["right"] = sum(map(str.__eq__, result["texts"], right))
    result["equal"] = sum(map(str.__eq__, result["texts"], plain))


def line(result: dict) -> str:
    if "error" in result:
        return result["error"]
    drafted, accepted = result["drafted"], result["accepted"]
    rate = f"{accepted / drafted:.3f}" if drafted else "-"
    return f"{result['right']:6} {result['equal']:8} {drafted:8} {accepted:9} {rate:>6} {result['seconds']:7}"


def all_well(results: dict[str, dict]) -> bool:
    if any("error" in result for result in results.values()):
        return False
    enough = results["plain"]["right"] - 1
    ours = [result for name, result in results.items() if name.startswith("std")]
    return all(result["accepted"] and result["right"] >= enough for result in ours)


if __name__ == "__main__":
    main()
