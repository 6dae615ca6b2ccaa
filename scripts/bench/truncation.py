"""What it brings to draft with a request's top-k, top-p and min-p: accepted drafts with and without, the same prompts.

    python scripts/bench/truncation.py --out docs/records/truncation.json

Acceptance does not depend on the hardware. SmolLM2 on the beginnings of real texts, float32.
"""

import json
import os
from pathlib import Path
from typing import Annotated, Any

os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_USE_V2_MODEL_RUNNER="1", HF_HUB_OFFLINE="1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import typer  # noqa: E402
from speed import counted  # noqa: E402

from vllm_std.tools.prompts import from_file  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
SAMPLING: list[dict[str, Any]] = [
    {"temperature": 0.7, "top_p": 0.8, "top_k": 20},  # of Qwen2.5's generation_config.json
    {"temperature": 1.0, "top_p": 0.95},
    {"temperature": 1.0, "min_p": 0.05},
]
STD = {"method": "std", "adaptive": False, "num_speculative_tokens": 5, "top_k": 192}


def measure(llm, prompts: list[dict], sampling: dict[str, Any], tokens: int, seed: int) -> dict[str, int]:
    from vllm import SamplingParams

    before = counted(llm)
    llm.generate(prompts, SamplingParams(max_tokens=tokens, ignore_eos=True, seed=seed, **sampling), use_tqdm=False)
    drafted, accepted = (after - then for after, then in zip(counted(llm), before))
    return {"drafted": drafted, "accepted": accepted}


def main(
    out: Annotated[Path, typer.Option(help="JSON of what was counted")],
    texts: Annotated[Path, typer.Option(help="JSONL of prompts")] = ROOT / ".cache/speed/text.jsonl",
    count: Annotated[int, typer.Option(help="prompts")] = 8,
    length: Annotated[int, typer.Option(help="tokens of each that are read")] = 700,
    tokens: Annotated[int, typer.Option(help="of each answer")] = 64,
    seeds: Annotated[int, typer.Option(help="answers to each prompt")] = 2,
) -> None:
    from vllm import LLM

    from vllm_std.patches.lab import Bench

    llm = LLM(
        str(ROOT / ".cache/smollm2"), dtype="float32", enforce_eager=True, block_size=32, max_model_len=4096,
        kv_cache_memory_bytes=2**31, max_num_seqs=8, disable_log_stats=False, speculative_config=STD,
    )  # fmt: skip
    words = [prompt.messages[-1]["content"] for prompt in from_file(texts)[:count]]
    prompts = [{"prompt_token_ids": llm.get_tokenizer().encode(text)[:length]} for text in words]
    speculator = Bench(llm).speculator
    truncation, rows = speculator.std.truncation, []
    for sampling in SAMPLING:
        for seed in range(seeds):
            for side, used in {"with": truncation, "without": None}.items():
                speculator.std.truncation = used
                rows.append({"sampling": sampling, "side": side} | measure(llm, prompts, sampling, tokens, seed))
                typer.echo(rows[-1])
    found = {"model": "SmolLM2-135M-Instruct", "prompts": count, "prompt_tokens": length, "answer_tokens": tokens}
    out.write_text(json.dumps(found | {"std": STD, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
