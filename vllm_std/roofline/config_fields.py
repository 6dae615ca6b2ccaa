"""Sizes that a model's config states, under whatever name its family gives them."""

from typing import Any

import torch

EXPERTS = ("num_experts", "moe_num_experts", "n_routed_experts", "num_local_experts")
EXPERTS_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk", "moe_top_k")
UNGATED = {"starcoder2", "gpt_neox", "phi", "nemotron"}  # model types whose MLP is two matrices; all others' is three
FOUR_BITS = ("awq", "gptq", "bitsandbytes", "fp4", "int4", "w4")  # in the name of a quantisation that states no bits
LARGEST_DTYPE = 2  # bytes of a value: vLLM's `--dtype auto` makes 16 bits of float32


def first_size(text: Any, *names: str) -> int | None:
    """Of several names the first that the config `text` has as a whole number."""
    return next((value for name in names if isinstance(value := getattr(text, name, None), int)), None)


def required_size(text: Any, name: str) -> int:
    value = first_size(text, name)
    if value is None:
        raise ValueError(f"the config of this {text.model_type} model has no {name}, and no cost can be told without.")
    return value


def attention_sizes(text: Any, layer: int) -> tuple[int, int, int]:
    """Query heads, KV heads and head size of a layer; in some models they differ from layer to layer."""
    by_layer = getattr(text, "per_layer_config", None)
    config = by_layer[layer] if by_layer is not None else text
    heads = required_size(config, "num_attention_heads")
    kv_heads = first_size(config, "num_key_value_heads") or heads
    return heads, kv_heads, first_size(config, "head_dim") or required_size(config, "hidden_size") // heads


def mlp_parameters(text: Any, hidden: int, layers: int) -> tuple[int, int, float]:
    """Parameters of what every token passes, and of the routed experts; the share of those that a token is sent to."""
    width = first_size(text, "intermediate_size")
    matrices = 2 if width is None or text.model_type in UNGATED else 3
    dense = matrices * hidden * (width or first_size(text, "ffn_dim") or 4 * hidden)
    experts = first_size(text, *EXPERTS)
    if not experts:
        return layers * dense, 0, 1.0
    sparse_layers = _sparse_layers(text, layers)
    expert = matrices * hidden * (first_size(text, "moe_intermediate_size") or width or 0)
    shared = (first_size(text, "n_shared_experts") or 0) * expert
    shared += matrices * hidden * (first_size(text, "shared_expert_intermediate_size") or 0)
    both = sparse_layers if getattr(text, "enable_moe_block", False) else 0  # Gemma-4 has a dense MLP beside experts
    every_token = (layers - sparse_layers + both) * dense + sparse_layers * shared
    return every_token, sparse_layers * experts * expert, (first_size(text, *EXPERTS_PER_TOKEN) or 1) / experts


def _sparse_layers(text: Any, layers: int) -> int:
    """How many layers have experts."""
    behind_dense = layers - (first_size(text, "first_k_dense_replace") or 0)
    every = first_size(text, "decoder_sparse_step") or 1
    return behind_dense // every - len(getattr(text, "mlp_only_layers", None) or ())


def value_bytes(config: Any, text: Any) -> tuple[int, float]:
    """Of a value in the model's dtype, and of a weight of a layer, which may be quantised."""
    dtype = getattr(config, "dtype", None) or getattr(text, "dtype", None) or torch.bfloat16
    value = (getattr(torch, dtype) if isinstance(dtype, str) else dtype).itemsize
    if not hasattr(config, "hf_text_config"):
        value = min(value, LARGEST_DTYPE)
    given = _quantisation(config)
    method = getattr(config, "quantization", None) or given.get("quant_method")
    if not method:
        return value, value
    groups = (given.get("config_groups") or {}).values()
    bits = next((group["weights"]["num_bits"] for group in groups if group.get("weights")), None)
    name = f"{method} {given.get('quant_algo')} {given.get('format')}".lower()
    guess = 4 if any(part in name for part in FOUR_BITS) and not given.get("load_in_8bit") else 8
    return value, (bits or given.get("bits") or given.get("w_bit") or guess) / 8


def packs_experts_alone(config: Any) -> bool:
    """Whether only experts are quantised."""
    return _quantisation(config).get("quant_method") == "mxfp4"


def _quantisation(config: Any) -> dict[str, Any]:
    given = getattr(getattr(config, "hf_config", config), "quantization_config", None) or {}
    return given if isinstance(given, dict) else given.to_dict()


def ties_embeddings(config: Any, text: Any) -> bool:
    """Whether input embeddings and output head are one matrix."""
    whole = getattr(config, "hf_config", config)
    return bool(getattr(whole, "tie_word_embeddings", False) or getattr(text, "tie_word_embeddings", False))
