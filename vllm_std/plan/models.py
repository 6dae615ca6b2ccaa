"""The config of a model, and what std would refuse about it. Needs transformers, and neither weights nor vLLM."""

from typing import Any

FULL_ATTENTION = (
    "use a decoder in which layers attend to the full context, all (Llama, Qwen3, Qwen2-VL, ...) or some beside a "
    "sliding window (Gemma-3, gpt-oss, ...)"
)
SCALED_ALREADY = "su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling"  # in their configs
FULL, WINDOWED = {"full_attention", "attention"}, {"sliding_attention"}
ATTENDS = FULL | WINDOWED  # kinds of layers, as configs name them


def load(model: str) -> Any:
    """The config of a folder or hub name. Raises ValueError where there is none, or one that std refuses."""
    try:
        from transformers import AutoConfig
    except ImportError:
        raise ValueError("vllm-std plan reads configs with transformers: pip install transformers.") from None
    try:
        config = AutoConfig.from_pretrained(model)
    except Exception as error:  # whatever a hub, a file or a config class may say
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"--model {model} has no config that transformers can read: {reason}") from None
    for reason in _refusals(config, config.get_text_config()):
        raise ValueError(f"speculative method 'std' does not support --model {model} ({reason}): {FULL_ATTENTION}.")
    return config


def longest_context(config: Any) -> int | None:
    """Tokens that a model takes, as vLLM derives `--max-model-len` from its config; None where it does not say."""
    text = config.get_text_config()
    longest, rope = getattr(text, "max_position_embeddings", None), getattr(text, "rope_parameters", None) or {}
    if longest is None or rope.get("rope_type") in (None, "default", "mrope", *SCALED_ALREADY):
        return longest
    return int(longest * rope.get("factor", 1.0))


def layer_counts(text: Any) -> tuple[int, int]:
    """(layers that attend to the whole context, layers that attend to a sliding window); text: a decoder's config."""
    kinds, layers = getattr(text, "layer_types", None), getattr(text, "num_hidden_layers", None) or 0
    if kinds:
        windowed = sum(kind in WINDOWED for kind in kinds[:layers])
    else:
        windowed = sum(map(bool, getattr(text, "hybrid_layer_pattern", None) or ()))  # MiMo-V2: 1 for a window
    return layers - windowed, windowed


def has_alibi(text: Any) -> bool:
    """As the models of vLLM that have it read their configs; where another does, the worker refuses it."""
    large_baichuan = text.model_type == "baichuan" and text.hidden_size != 4096
    told = getattr(text, "alibi", False) or getattr(text, "position_embedding_type", None) == "alibi"
    return bool(text.model_type == "bloom" or large_baichuan or told)


def _refusals(config: Any, text: Any):
    kinds = set(getattr(text, "layer_types", None) or getattr(text, "layers_block_type", None) or ()) - FULL
    window = getattr(text, "sliding_window", None)
    reasons = {
        "an encoder-decoder": config.is_encoder_decoder,
        "MLA attention": getattr(text, "kv_lora_rank", None) is not None,
        "without attention": not getattr(text, "num_attention_heads", None),
        f"{' and '.join(sorted(kinds))} layers": bool(kinds),
        f"a sliding window of {window} tokens": bool(window),
        "ALiBi positions": has_alibi(text),
    }
    return [reason for reason, applies in reasons.items() if applies]
