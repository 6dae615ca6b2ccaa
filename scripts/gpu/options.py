"""How the engines of a part are started."""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from gpu.parts import Part
from gpu.shapes import SHAPES, TINY

ROOT = Path(__file__).resolve().parents[2]
ON_CPU = {"dtype": "float32", "enforce_eager": True, "kv_cache_memory_bytes": 2**28, "block_size": 32}


@dataclass(frozen=True)
class Setup:
    """device: "cpu" or the card's name; memory: share of the GPU for this engine; text_model: folder of SmolLM2;
    usual: start as `vllm serve` would, with a CUDA graph for each of vLLM's batch sizes and not just those measured."""

    part: Part
    device: str
    memory: float
    text_model: Path
    usual: bool = False


def engine_options(side: str, setup: Setup) -> dict:
    """Arguments of `vllm.LLM`, the same for all sides but for what they draft with."""
    part = setup.part
    options = dict(
        model=_model_folder(setup), max_model_len=max(context for _, context in part.rows) + _room(part),
        dtype="bfloat16", enable_prefix_caching=True, disable_log_stats=False, seed=0,
        max_num_batched_tokens=16384 if part.model == "video" else 8192, speculative_config=_speculative(side, part),
    )  # fmt: skip
    if not setup.usual:
        options["max_num_seqs"] = max(batch for batch, _ in part.rows)
    if not part.trained:
        options |= {"load_format": "dummy", "skip_tokenizer_init": True}
    if part.model == "video":
        options["mm_processor_cache_gb"] = 0  # prompts are rendered once and sent again: they must carry their videos
    if setup.device == "cpu":
        return options | ON_CPU
    options["gpu_memory_utilization"] = setup.memory
    if not setup.usual:
        options["compilation_config"] = {"cudagraph_capture_sizes": capture_sizes(part)}
    return options


def _room(part: Part) -> int:
    """Tokens beyond the context."""
    return 512 if part.trained else 1024


def _model_folder(setup: Setup) -> str:
    """That of a model with dummy weights has a config alone."""
    name = setup.part.model
    if setup.part.trained:
        return str(setup.text_model if name == "smollm2" else ROOT / "vllm_std/tools/demo/tiny-sign-vlm")
    folder = Path(tempfile.gettempdir(), "vllm-std-gpu", name + "-tiny" * setup.part.tiny)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(SHAPES[name] | (TINY if setup.part.tiny else {})))
    return str(folder)


def _speculative(side: str, part: Part) -> dict | None:
    """The `speculative_config` of a side."""
    if side == "plain":
        return None
    options = dict(part.sides[side])
    if options["method"] == "std":
        from vllm_std.plugin import register

        register()  # the package need not be installed
    rates = [rate for _, rate, _ in part.drafts[side] if rate is not None]
    if rates:
        length = options.setdefault("num_speculative_tokens", _default_length())
        unconditional = [rates[0] ** position for position in range(1, length + 1)]
        options |= {"rejection_sample_method": "synthetic", "synthetic_acceptance_rates": unconditional}
    return options


def _default_length() -> int:
    from vllm_std.config import StdConfig

    return StdConfig.num_speculative_tokens


def capture_sizes(part: Part) -> list[int]:
    """Tokens of each pass that a cell can make, so that all of them are full CUDA graphs and start-up stays short."""
    from vllm_std.config import DRAFT_LENGTHS

    longest = [given.get("num_speculative_tokens", _default_length()) for given in part.sides.values()]
    lengths = {0, *longest, *(length for length in DRAFT_LENGTHS if length < max(longest))}
    batches = {batch for batch, _ in part.rows}
    if part.trained:  # answers end one by one, so the batch shrinks
        batches |= {batch for batch in (1, 2, 4, 8, 16, 24, 32, 48) if batch < max(batches)}
    return sorted({batch * (1 + length) for batch in batches for length in lengths})
