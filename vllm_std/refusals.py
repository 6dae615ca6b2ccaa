"""What std refuses to run with: settings of an engine, and models whose attention it cannot mask.

All are refused in one form of sentence, which names the setting, its value and what would work. What only a worker can
see of a model's layers is refused in `patches.groups`, in the same words.
"""

from collections.abc import Iterator
from typing import Any

from vllm_std.models import ATTENDS, FULL_ATTENTION, has_alibi, interleaves

CACHE_DTYPES = ("auto", "bfloat16", "float16", "fp8", "fp8_e4m3", "fp8_e5m2")  # values of --kv-cache-dtype
CONNECTORS = ("OffloadingConnector", "ExampleConnector")  # KV connectors that were tested
BACKENDS = ("FLASH_ATTN", "TRITON_ATTN", "CPU_ATTN")  # attention backends that draft steps run on, preferred first
PARALLELISM = ("pipeline_parallel_size", "decode_context_parallel_size", "prefill_context_parallel_size")

Refusal = tuple[str, Any, str]  # the option, its value, and what works


def unsupported(option: str, value: Any, works: str) -> ValueError:
    """The error for one refusal."""
    return ValueError(f"speculative method 'std' does not support {option}={value}: {works}.")


def refuse_unsupported(vllm_config) -> None:
    """Raise ValueError for the first setting of an engine that std does not support."""
    for refusal in (*_settings(vllm_config), *_model(vllm_config)):
        raise unsupported(*refusal)
    block_size = vllm_config.cache_config.block_size
    if block_size:  # else the attention backend chooses it, and the worker checks
        vllm_config.speculative_config.mask_shape(block_size)


def refuse_model(model: str, config: Any) -> None:
    """The same for a model of which only the config is known, as transformers loads it, not the engine's."""
    text = config.get_text_config()
    own = {
        "an encoder-decoder": config.is_encoder_decoder,
        "MLA attention": getattr(text, "kv_lora_rank", None) is not None,
        "without attention": not getattr(text, "num_attention_heads", None),
    }
    for reason in _first(own | _by_config(text, getattr(text, "sliding_window", None))):
        raise unsupported("--model", f"{model} ({reason})", FULL_ATTENTION)


def _settings(vllm_config) -> Iterator[Refusal]:
    parallel, cache = vllm_config.parallel_config, vllm_config.cache_config
    for size in PARALLELISM:
        if getattr(parallel, size, 1) > 1:
            flag = "--" + size.replace("_", "-")
            yield flag, getattr(parallel, size), f"use {flag} 1, and --tensor-parallel-size for more GPUs"
    if parallel.data_parallel_size > 1 and vllm_config.model_config.is_moe:
        yield "--data-parallel-size", parallel.data_parallel_size, "use 1 with a mixture of experts"
    if parallel.enable_eplb:
        yield "--enable-eplb", True, "start without it"
    if not vllm_config.use_v2_model_runner:
        yield "VLLM_USE_V2_MODEL_RUNNER", 0, "it drafts on Model Runner V2; unset the variable and install Triton"
    connector = getattr(vllm_config.kv_transfer_config, "kv_connector", None)
    if connector not in (None, *CONNECTORS):
        yield "--kv-transfer-config", connector, f"use {' or '.join(CONNECTORS)}, or start without a KV connector"
    if cache.cache_dtype not in CACHE_DTYPES:
        yield "--kv-cache-dtype", cache.cache_dtype, f"use {', '.join(CACHE_DTYPES)}"
    if vllm_config.scheduler_config.scheduler_cls is not None:
        yield "--scheduler-cls", vllm_config.scheduler_config.scheduler_cls, "start without it, std brings its own"
    proposals, scheduler = vllm_config.speculative_config.proposals, vllm_config.scheduler_config
    tokens = (1 + proposals) * scheduler.max_num_seqs  # of a draft step
    if proposals and tokens > scheduler.max_num_batched_tokens:
        yield "proposals", proposals, f"use fewer, --max-num-batched-tokens {tokens}, or a smaller --max-num-seqs"
    backend = vllm_config.attention_config.backend
    if backend is not None and backend.name not in BACKENDS:
        yield "--attention-backend", backend.name, f"use {' or '.join(BACKENDS)}"


def _model(vllm_config) -> Iterator[Refusal]:
    model, text = vllm_config.model_config, vllm_config.model_config.hf_text_config
    window = vllm_config.cache_config.sliding_window  # None where layers differ
    own = {
        "not a text generator": model.runner_type != "generate",
        "an encoder-decoder": model.is_encoder_decoder,
        "MLA attention": model.use_mla,
        "without attention": model.is_attention_free,
        "a hybrid of attention and Mamba": model.is_hybrid,
        "reference sliding window attention": getattr(model, "rswa_window", None) is not None,
    }
    for reason in _first(own | _by_config(text, window)):
        yield "--model", f"{model.model} ({reason})", FULL_ATTENTION
    if getattr(text, "dual_chunk_attention_config", None):  # vLLM issue 24048
        instead = "no attention backend of vLLM has it; configs/qwen2.5-7b-1m.yaml serves such a model without"
        yield "--model", f"{model.model} (dual chunk attention)", instead


def _by_config(text: Any, window: int | None) -> dict[str, bool]:
    """Reasons against a model that its text config tells, and whether each applies; window: tokens, of all layers."""
    kinds = set(getattr(text, "layer_types", None) or getattr(text, "layers_block_type", None) or ()) - ATTENDS
    return {
        f"{' and '.join(sorted(kinds))} layers": bool(kinds),
        f"a sliding window of {window} tokens in every layer": bool(window) and not interleaves(text),
        "ALiBi positions": has_alibi(text),
    }


def _first(reasons: dict[str, bool]) -> list[str]:
    return [reason for reason, applies in reasons.items() if applies]
