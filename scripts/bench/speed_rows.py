"""What `speed.py` times: models, and prompts with batch size and context length."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_std.tools.demo import MODEL
from vllm_std.tools.demo.servers import fast_cpu_dtype
from vllm_std.tools.demo.sign_video import write_video
from vllm_std.tools.prompts import Prompt, from_file, from_videos

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache/speed"
# vLLM keeps as many encoded video tokens as fit a batch: else a video would be encoded again in each turn.
VIDEO = {"media_io_kwargs": {"video": {"video_backend": "opencv", "num_frames": -1}}, "max_num_batched_tokens": 65536}
VIDEO |= {"allowed_local_media_path": str(CACHE), "max_model_len": 32768, "max_num_seqs": 16}
VIDEO |= {"skip_mm_profiling": True}  # of no use where the KV cache has a size of its own


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
    """Rows that share engines. kv: GiB of KV cache in bfloat16; synthetic: acceptance that is not measured but set."""

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
        "bundled video model", MODEL, 0.15, VIDEO | {"max_model_len": 3072},
        [
            Row("video-8x2k", 8, "2K", "videos-2k"),
            Row("video-ramp-2k", 16, "2K, one after the other", "videos-2k", apart=60),
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
    Group(
        "SmolLM2-135M-Instruct", ".cache/smollm2", 0.5, {"max_model_len": 2560, "max_num_seqs": 8},
        [Row("smollm2-8x2k", 8, "2K", "text-2k.jsonl")],
    ),
    mha(0.9),
    mha(0.95),
]  # fmt: skip


def prepare() -> None:
    """Make the videos and prompts that are not there yet."""
    sizes = ("2k", 112, 2, 16), ("8k", 450, 2, 16), ("16k", 900, 2, 8), ("31k", 860, 4, 4)
    for name, scenes, patches, count in sizes:
        folder = CACHE / f"videos-{name}"
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            if not (path := folder / f"signs-{number:02d}.mp4").with_suffix(".json").exists():
                write_video(path, scenes, patches, seed=number + 1, sentences=16)
    for name, count, least, most in (("text", 40, 4000, 7500), ("text-2k", 8, 800, 2300)):
        if not (path := CACHE / f"{name}.jsonl").exists():
            options = f"--count {count} --min-tokens {least} --max-tokens {most}".split()
            places = ["--tokenizer", str(ROOT / ".cache/smollm2"), "--out", str(path)]
            script = str(ROOT / "scripts/bench/prompts.py")
            subprocess.run([sys.executable, script, *options, *places], check=True)


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
        "dtype": fast_cpu_dtype(), "threads": os.environ.get("OMP_NUM_THREADS"), "block_size": 32,
        "vllm": vllm_version(), "vllm_std": __version__, "torch": torch.__version__, "numba": version("numba"),
    }  # fmt: skip
