"""Does std run right on this GPU, under vLLM's defaults (compiled, CUDA graphs for the target, async scheduling)?

    python scripts/check_gpu.py [--videos 4] [--json result.json]

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

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from vllm_std.tools.demo import MODEL  # noqa: E402
from vllm_std.tools.demo.sign_video import SignVideo  # noqa: E402

GAMMA, TOP_K = 5, 192


def std(**options) -> dict:
    return {"method": "std", "adaptive": False, "num_speculative_tokens": GAMMA, "top_k": TOP_K} | options


METHODS = {
    "plain": None,
    "draft_model": {"method": "draft_model", "model": MODEL, "num_speculative_tokens": GAMMA},
    "std, all blocks": std(top_k=8192),
    "std verify": std(),
    "std text": std(selection="text"),
    "std streaming": std(selection="streaming"),
}


def run(method: dict | None, prompts: list[dict], **settings) -> dict:
    """What one engine answers, in a process of its own."""
    os.dup2(2, 1)  # what vLLM says is not part of the table
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_USE_V2_MODEL_RUNNER="1", VLLM_USE_FLASHINFER_SAMPLER="0")
    from vllm import LLM, SamplingParams

    from vllm_std.plugin import register

    register()
    llm = LLM(
        model=MODEL, max_model_len=8192, max_num_batched_tokens=8192, max_num_seqs=16,
        speculative_config=method, disable_log_stats=False, gpu_memory_utilization=0.5, **settings,
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=4)
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--block-size", type=int, help="default: vLLM's; 32 to try this script without a GPU")
    parser.add_argument("--json", type=Path, help="write all results here")
    args = parser.parse_args()
    videos = [SignVideo(args.scenes, seed=seed) for seed in range(args.videos)]
    asked = [(video, video.ask(task, 8)) for video in videos for task in ("list", "range", "follow")]
    prompts = [video.prompt(question["question"]) for video, question in asked]
    of = f"top_k {TOP_K} of {videos[0].visual_tokens} visual tokens"
    print(f"{len(prompts)} answers, gamma {GAMMA}, {of}, {args.dtype}")
    print(f"{'':16} {'right':>6} {'= plain':>8} {'drafted':>8} {'accepted':>9} {'rate':>6} {'s':>7}", flush=True)
    results: dict[str, dict] = {}
    for name, method in METHODS.items():
        try:
            found = results[name] = alone(method, prompts, dtype=args.dtype, block_size=args.block_size)
        except Exception as error:
            results[name] = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        else:
            found["right"] = sum(text == question["answer"] for text, (_, question) in zip(found["texts"], asked))
            plain = results["plain"].get("texts", [])
            found["equal"] = sum(text == other for text, other in zip(found["texts"], plain))
        print(f"{name:16} {line(results[name])}", flush=True)
        if args.json:
            args.json.write_text(json.dumps(results, indent=1) + "\n")
    sys.exit(not all_well(results))


def alone(method: dict | None, prompts: list[dict], **settings) -> dict:
    """`run` in a process of its own, which has ended when this returns."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(run, method, prompts, **settings).result()


def all_well(results: dict[str, dict]) -> bool:
    if any("error" in found for found in results.values()):
        return False
    ours, enough = [found for name, found in results.items() if name.startswith("std")], results["plain"]["right"] - 1
    return all(found["accepted"] and found["right"] >= enough for found in ours)


def line(r: dict) -> str:
    if "error" in r:
        return r["error"]
    rate = f"{r['accepted'] / r['drafted']:.3f}" if r["drafted"] else "-"
    return f"{r['right']:6} {r['equal']:8} {r['drafted']:8} {r['accepted']:9} {rate:>6} {r['seconds']:7}"


if __name__ == "__main__":
    main()
