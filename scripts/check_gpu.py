"""Does std run right on this GPU, under vLLM's defaults (compiled, CUDA graphs for the target, async scheduling)?

    python scripts/check_gpu.py [--videos 4] [--json result.json]

Asks the bundled video model about generated videos, greedily, through plain vLLM, through vLLM's own draft model method
(draft = target) and through std with each policy, and prints a table: answers that are right, answers equal to plain
vLLM's, and accepted drafts. In bf16 answers may part at near ties, for the draft model method as well as for std.
"""

import argparse
import gc
import json
import time
from pathlib import Path

from vllm_std.demo import MODEL
from vllm_std.demo.sign_video import SignVideo

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
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=MODEL, max_model_len=8192, max_num_batched_tokens=8192, max_num_seqs=16,
        speculative_config=method, disable_log_stats=False, gpu_memory_utilization=0.5, **settings,
    )  # fmt: skip
    begun = time.time()
    outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=400), use_tqdm=False)
    seconds = time.time() - begun
    counted = {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}
    del llm
    gc.collect()
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
    results = {}
    for name, method in METHODS.items():
        results[name] = run(method, prompts, dtype=args.dtype, block_size=args.block_size)
        results[name]["right"] = sum(
            text == question["answer"] for text, (_, question) in zip(results[name]["texts"], asked)
        )
        results[name]["equal"] = sum(a == b for a, b in zip(results[name]["texts"], results["plain"]["texts"]))
    of = f"top_k {TOP_K} of {videos[0].visual_tokens} visual tokens"
    print(f"\n{len(prompts)} answers, gamma {GAMMA}, {of}, {args.dtype}")
    print(f"{'':16} {'right':>6} {'= plain':>8} {'drafted':>8} {'accepted':>9} {'rate':>6} {'s':>7}")
    for name, r in results.items():
        rate = f"{r['accepted'] / r['drafted']:.3f}" if r["drafted"] else "-"
        print(f"{name:16} {r['right']:6} {r['equal']:8} {r['drafted']:8} {r['accepted']:9} {rate:>6} {r['seconds']:7}")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
