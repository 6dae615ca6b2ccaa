"""The config of a model, and what std would refuse about it. Needs transformers, and neither weights nor vLLM."""

from typing import Any

# As `config._model_refusals` says it to a server that starts.
FULL_ATTENTION = "use a decoder in which every layer attends to the full context (Llama, Qwen2, Qwen3, Qwen2-VL, ...)"
FULL = {"full_attention", "attention"}


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


def _refusals(config: Any, text: Any):
    kinds = set(getattr(text, "layer_types", None) or getattr(text, "layers_block_type", None) or ()) - FULL
    window = getattr(text, "sliding_window", None)
    reasons = {
        "an encoder-decoder": config.is_encoder_decoder,
        "MLA attention": getattr(text, "kv_lora_rank", None) is not None,
        "without attention": not getattr(text, "num_attention_heads", None),
        f"{' and '.join(sorted(kinds))} layers": bool(kinds),
        f"a sliding window of {window} tokens": bool(window),
    }
    return [reason for reason, applies in reasons.items() if applies]
