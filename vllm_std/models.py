"""The config of a model, and its layers by kind. Needs transformers, and neither weights nor vLLM."""

from typing import Any

FULL_ATTENTION = (
    "use a decoder in which layers attend to the full context, all (Llama, Qwen3, Qwen2-VL, ...) or some beside a "
    "sliding window (Gemma-3, gpt-oss, ...)"
)
# Kinds of RoPE scaling whose max_position_embeddings is the scaled length already.
SCALED_ALREADY = ("su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling")
WINDOWED = {"sliding_attention"}  # what configs call layers that attend to a sliding window
ATTENDS = WINDOWED | {"full_attention", "attention"}  # what they call all layers that std can run with


def load(model: str) -> Any:
    """The config of a folder or hub name. Raises ValueError where there is none."""
    try:
        from transformers import AutoConfig
    except ImportError:
        raise ValueError("vllm-std plan reads configs with transformers: pip install transformers.") from None
    try:
        return AutoConfig.from_pretrained(model)
    except Exception as error:  # whatever a hub, a file or a config class may say
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"--model {model} has no config that transformers can read: {reason}") from None


def longest_context(config: Any) -> int | None:
    """Tokens that a model takes, as vLLM derives `--max-model-len` from its config; None where it does not say."""
    text = config.get_text_config()
    longest = getattr(text, "max_position_embeddings", None)
    rope = getattr(text, "rope_parameters", None) or {}
    if longest is None or rope.get("rope_type") in (None, "default", "mrope", *SCALED_ALREADY):
        return longest
    return int(longest * rope.get("factor", 1.0))


def windowed_layers(text: Any) -> list[int]:
    """Indices of the layers that attend to a sliding window; text: the config of a decoder."""
    kinds = getattr(text, "layer_types", None)
    if kinds is None:  # MiMo-V2 has 1 for a window
        kinds = ["sliding_attention" * bool(kind) for kind in getattr(text, "hybrid_layer_pattern", None) or ()]
    layers = getattr(text, "num_hidden_layers", None) or 0
    return [layer for layer, kind in enumerate(kinds[:layers]) if kind in WINDOWED]


def full_layers(text: Any) -> list[int]:
    """Indices of the layers that attend to the whole context."""
    return sorted(set(range(getattr(text, "num_hidden_layers", None) or 0)) - set(windowed_layers(text)))


def interleaves(text: Any) -> bool:
    """Whether layers of both kinds are there, as far as the config names them."""
    return bool(windowed_layers(text) and full_layers(text))


def has_alibi(text: Any) -> bool:
    """Whether vLLM's model of this config has ALiBi positions; where another model has, the worker refuses it."""
    large_baichuan = text.model_type == "baichuan" and text.hidden_size != 4096
    named = getattr(text, "alibi", False) or getattr(text, "position_embedding_type", None) == "alibi"
    return bool(text.model_type == "bloom" or large_baichuan or named)
