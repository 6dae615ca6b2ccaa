"""The config of a model, and its layers by kind. Needs transformers, and neither weights nor vLLM."""

from typing import Any

FULL_ATTENTION = (
    "use a decoder in which layers attend to the full context, all (Llama, Qwen3, Qwen2-VL, ...) or some beside a "
    "sliding window (Gemma-3, gpt-oss, ...)"
)
SCALED_ALREADY = "su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling"  # in their configs
FULL, WINDOWED = {"full_attention", "attention"}, {"sliding_attention"}
ATTENDS = FULL | WINDOWED  # kinds of layers, as configs name them


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
    longest, rope = getattr(text, "max_position_embeddings", None), getattr(text, "rope_parameters", None) or {}
    if longest is None or rope.get("rope_type") in (None, "default", "mrope", *SCALED_ALREADY):
        return longest
    return int(longest * rope.get("factor", 1.0))


def windowed_layers(text: Any) -> list[int]:
    """Those of a decoder's layers that attend to a sliding window; text: its config."""
    kinds = getattr(text, "layer_types", None)
    if kinds is None:  # MiMo-V2 has 1 for a window
        kinds = ["sliding_attention" * bool(kind) for kind in getattr(text, "hybrid_layer_pattern", None) or ()]
    layers = getattr(text, "num_hidden_layers", None) or 0
    return [layer for layer, kind in enumerate(kinds[:layers]) if kind in WINDOWED]


def full_layers(text: Any) -> list[int]:
    """Those that attend to the whole context."""
    return sorted(set(range(getattr(text, "num_hidden_layers", None) or 0)) - set(windowed_layers(text)))


def interleaves(text: Any) -> bool:
    """Whether layers of both kinds are there, as far as the config names them."""
    return bool(windowed_layers(text) and full_layers(text))


def has_alibi(text: Any) -> bool:
    """As the models of vLLM that have it read their configs; where another does, the worker refuses it."""
    large_baichuan = text.model_type == "baichuan" and text.hidden_size != 4096
    told = getattr(text, "alibi", False) or getattr(text, "position_embedding_type", None) == "alibi"
    return bool(text.model_type == "bloom" or large_baichuan or told)
