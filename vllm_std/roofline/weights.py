"""The weights of a decoder: bytes that a pass reads, and parameters that a token is multiplied with."""

from dataclasses import dataclass
from typing import Any

from vllm_std.roofline.config_fields import (
    attention_sizes,
    mlp_parameters,
    packs_experts_alone,
    required_size,
    ties_embeddings,
    value_bytes,
)


@dataclass(frozen=True)
class Weights:
    """As one worker has them; norms and biases are left out, and so is whatever sees images.

    every_pass: bytes that every pass reads. experts: bytes of all routed experts, of which a token needs the share
    `routed`. active: parameters that a token is multiplied with. stored: bytes of all.
    """

    every_pass: float
    experts: float
    routed: float
    active: float
    stored: float

    @classmethod
    def of(cls, config: Any, text: Any, workers: int) -> "Weights":
        """config: vLLM's ModelConfig or a config of transformers; text: that of its decoder.

        Raises ValueError where the config does not state a size.
        """
        hidden, layers = required_size(text, "hidden_size"), required_size(text, "num_hidden_layers")
        mlp, experts, routed = mlp_parameters(text, hidden, layers)
        sizes = [attention_sizes(text, layer) for layer in range(layers)]
        dense = mlp + sum(2 * hidden * head_size * (heads + kv_heads) for heads, kv_heads, head_size in sizes)
        head = hidden * required_size(text, "vocab_size")
        value, packed = value_bytes(config, text)
        dense_bytes = dense * (value if packs_experts_alone(config) else packed)
        embeddings = 0 if ties_embeddings(config, text) else head
        return cls(
            every_pass=(dense_bytes + head * value) / workers,
            experts=experts * packed / workers,
            routed=routed,
            active=(dense + head + experts * routed) / workers,
            stored=(dense_bytes + experts * packed + (head + embeddings) * value) / workers,
        )

    def read(self, tokens: int) -> float:
        """Bytes in a pass: of the experts, those that any token is sent to, as if each were sent at random."""
        return self.every_pass + self.experts * (1 - (1 - self.routed) ** tokens)
