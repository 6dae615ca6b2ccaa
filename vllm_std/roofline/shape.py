"""What of a model costs time when it decodes: bytes of weights and of KV cache, and parameters multiplied."""

from dataclasses import dataclass
from typing import Any

import torch

from vllm_std.models import full_layers, windowed_layers

CACHE_BYTES = {"auto": None, "bfloat16": 2, "float16": 2, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1}  # of a value
EXPERTS = "num_experts", "moe_num_experts", "n_routed_experts", "num_local_experts"
EXPERTS_PER_TOKEN = "num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk", "moe_top_k"
UNGATED = {"starcoder2", "gpt_neox", "phi", "nemotron"}  # whose MLP is two matrices; all others' is taken to be three
FOUR_BITS = "awq", "gptq", "bitsandbytes", "fp4", "int4", "w4"  # in the name of a quantisation that states no bits


@dataclass(frozen=True)
class Shape:
    """A decoder as one worker has it; norms and biases are left out, and so is whatever sees images.

    weights: bytes that every pass reads; experts: bytes of all routed experts, of which a token needs the share
    `routed`; active: parameters that a token is multiplied with; stored: bytes of all weights.
    layers; heads, kv_heads, head_size: of a layer whose KV grows with the context; value: bytes of a value in the
    model's dtype; cached: of a cached key or value. workers: that share the model by tensor parallelism.
    windowed: layers that attend to a sliding window of `window` tokens; windowed_bytes: of a token's KV in all of them.
    """

    weights: float
    experts: float
    routed: float
    active: float
    stored: float
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

    def weights_read(self, tokens: int) -> float:
        """Bytes: of the experts, those that any of the tokens is sent to, as if each were sent at random."""
        return self.weights + self.experts * (1 - (1 - self.routed) ** tokens)

    @classmethod
    def of(cls, config: Any, cache_dtype: str = "auto", workers: int = 1) -> "Shape":
        """From vLLM's ModelConfig or a config of transformers. Raises ValueError for what has no such shape.

        cache_dtype: as `--kv-cache-dtype`; workers: as `--tensor-parallel-size`.
        """
        text = getattr(config, "hf_text_config", None) or config.get_text_config()
        if cache_dtype not in CACHE_BYTES:
            raise ValueError(f"--kv-cache-dtype {cache_dtype} does not work with std: use {', '.join(CACHE_BYTES)}.")
        hidden, layers = _need(text, "hidden_size"), _need(text, "num_hidden_layers")
        attention = [_attention(text, layer) for layer in range(layers)]
        heads, kv_heads, size = attention[next(iter(full_layers(text)), 0)]
        if workers < 1 or heads % workers:
            raise ValueError(f"--tensor-parallel-size {workers} does not divide the {heads} heads of this model.")
        local = [max(1, attention[layer][1] // workers) * attention[layer][2] for layer in windowed_layers(text)]
        head = hidden * _need(text, "vocab_size")
        mlp, routed_experts, share = _mlp(text, hidden, layers)
        value, packed = _bytes(config, text)
        dense = sum(2 * hidden * of * (query + key) for query, key, of in attention) + mlp
        every = dense * (value / packed if _packs_experts_alone(config) else 1)  # as if they were packed
        return cls(
            weights=(every * packed + head * value) / workers, experts=routed_experts * packed / workers,
            routed=share, active=(dense + head + routed_experts * share) / workers,
            stored=((every + routed_experts) * packed + head * value * (1 + (not _tied(config, text)))) / workers,
            layers=layers, heads=heads // workers, kv_heads=max(1, kv_heads // workers), head_size=size, value=value,
            cached=CACHE_BYTES[cache_dtype] or value, workers=workers, windowed=len(local),
            window=(_first(text, "sliding_window") or 0) if local else 0,
            windowed_bytes=2 * sum(local) * (CACHE_BYTES[cache_dtype] or value),
        )  # fmt: skip


def _attention(text: Any, layer: int) -> tuple[int, int, int]:
    """Query heads, KV heads and head size of a layer; in some models they differ from layer to layer."""
    own = getattr(text, "per_layer_config", None)
    of = own[layer] if own is not None else text
    heads = _need(of, "num_attention_heads")
    return (
        heads,
        _first(of, "num_key_value_heads") or heads,
        _first(of, "head_dim") or _need(of, "hidden_size") // heads,
    )


def _mlp(text: Any, hidden: int, layers: int) -> tuple[int, int, float]:
    """Parameters of what every token passes, and of the routed experts; the share of those that a token is sent to."""
    wide = _first(text, "intermediate_size")
    matrices = 2 if wide is None or text.model_type in UNGATED else 3
    dense = matrices * hidden * (wide or _first(text, "ffn_dim") or 4 * hidden)
    experts = _first(text, *EXPERTS)
    if not experts:
        return layers * dense, 0, 1.0
    sparse = (layers - (_first(text, "first_k_dense_replace") or 0)) // (_first(text, "decoder_sparse_step") or 1)
    sparse -= len(getattr(text, "mlp_only_layers", None) or ())
    expert = matrices * hidden * (_first(text, "moe_intermediate_size") or wide or 0)
    shared = (_first(text, "n_shared_experts") or 0) * expert
    shared += matrices * hidden * (_first(text, "shared_expert_intermediate_size") or 0)
    share = (_first(text, *EXPERTS_PER_TOKEN) or 1) / experts
    beside = sparse if getattr(text, "enable_moe_block", False) else 0  # Gemma-4 has both in a layer
    return (layers - sparse + beside) * dense + sparse * shared, sparse * experts * expert, share


def _packs_experts_alone(config: Any) -> bool:
    return _quantisation(config).get("quant_method") == "mxfp4"


def _quantisation(config: Any) -> dict[str, Any]:
    given = getattr(getattr(config, "hf_config", config), "quantization_config", None) or {}
    return given if isinstance(given, dict) else given.to_dict()


def _bytes(config: Any, text: Any) -> tuple[int, float]:
    """Of a value in the model's dtype, and of a weight of a layer, which may be quantised."""
    dtype = getattr(config, "dtype", None) or getattr(text, "dtype", None) or torch.bfloat16
    value = (getattr(torch, dtype) if isinstance(dtype, str) else dtype).itemsize
    if not hasattr(config, "hf_text_config"):
        value = min(value, 2)  # vLLM's `--dtype auto` makes 16 bits of float32
    given = _quantisation(config)
    method = getattr(config, "quantization", None) or given.get("quant_method")
    if not method:
        return value, value
    groups = (given.get("config_groups") or {}).values()
    bits = next((group["weights"]["num_bits"] for group in groups if group.get("weights")), None)
    name = f"{method} {given.get('quant_algo')} {given.get('format')}".lower()
    guess = 4 if any(part in name for part in FOUR_BITS) and not given.get("load_in_8bit") else 8
    return value, (bits or given.get("bits") or given.get("w_bit") or guess) / 8


def _tied(config: Any, text: Any) -> bool:
    whole = getattr(config, "hf_config", config)
    return bool(getattr(whole, "tie_word_embeddings", False) or getattr(text, "tie_word_embeddings", False))


def _first(text: Any, *names: str) -> int | None:
    return next((value for name in names if isinstance(value := getattr(text, name, None), int)), None)


def _need(text: Any, name: str) -> int:
    value = _first(text, name)
    if value is None:
        raise ValueError(f"the config of this {text.model_type} model has no {name}, and no cost can be told without.")
    return value
