"""What of a model costs time when it decodes: weights, and bytes of KV cache."""

from dataclasses import dataclass
from typing import Any

from vllm_std.models import full_layers, windowed_layers
from vllm_std.roofline.config_fields import attention_sizes, first_size, required_size, value_bytes
from vllm_std.roofline.weights import Weights

# Bytes of a cached key or value, by `--kv-cache-dtype`; None: as many as the model's dtype has.
CACHE_BYTES = {"auto": None, "bfloat16": 2, "float16": 2, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1}


@dataclass(frozen=True)
class Shape:
    """A decoder as one worker has it.

    heads, kv_heads, head_size: of a layer whose KV grows with the context. value: bytes of a value in the model's
    dtype; cached: of a cached key or value. workers: that share the model by tensor parallelism. windowed: layers that
    attend to a sliding window of `window` tokens; windowed_bytes: of a token's KV in all of them.
    """

    weights: Weights
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    value: int
    cached: int
    workers: int = 1
    windowed: int = 0
    window: int = 0
    windowed_bytes: int = 0

    @classmethod
    def of(cls, config: Any, cache_dtype: str = "auto", workers: int = 1) -> "Shape":
        """From vLLM's ModelConfig or a config of transformers. Raises ValueError for what has no such shape.

        cache_dtype: as `--kv-cache-dtype`; workers: as `--tensor-parallel-size`.
        """
        text = getattr(config, "hf_text_config", None) or config.get_text_config()
        if cache_dtype not in CACHE_BYTES:
            raise ValueError(f"--kv-cache-dtype {cache_dtype} does not work with std: use {', '.join(CACHE_BYTES)}.")
        layers = required_size(text, "num_hidden_layers")
        heads, kv_heads, head_size = attention_sizes(text, next(iter(full_layers(text)), 0))
        if workers < 1 or heads % workers:
            raise ValueError(f"--tensor-parallel-size {workers} does not divide the {heads} heads of this model.")
        value, _ = value_bytes(config, text)
        cached = CACHE_BYTES[cache_dtype] or value
        windowed = windowed_layers(text)
        return cls(
            weights=Weights.of(config, text, workers), layers=layers, heads=heads // workers,
            kv_heads=_kv_heads(kv_heads, workers), head_size=head_size, value=value, cached=cached, workers=workers,
            windowed=len(windowed), window=(first_size(text, "sliding_window") or 0) if windowed else 0,
            windowed_bytes=2 * cached * sum(_kv_values(text, layer, workers) for layer in windowed),
        )  # fmt: skip

    @property
    def full(self) -> int:
        """Layers that attend to the whole context."""
        return self.layers - self.windowed

    @property
    def kv_bytes(self) -> int:
        """Of a token, in all layers whose KV grows with the context."""
        return 2 * self.full * self.kv_heads * self.head_size * self.cached

    def window_bytes(self, context: int) -> int:
        """Of a request of so many tokens, in all windowed layers: bounded, however long it is."""
        return self.windowed_bytes * min(self.window, context)


def _kv_heads(heads: int, workers: int) -> int:
    """Of a worker; a KV head cannot be split."""
    return max(1, heads // workers)


def _kv_values(text: Any, layer: int, workers: int) -> int:
    """Values of a token's key in a layer, of one worker."""
    _, kv_heads, head_size = attention_sizes(text, layer)
    return _kv_heads(kv_heads, workers) * head_size
