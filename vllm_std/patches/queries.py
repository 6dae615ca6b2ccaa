"""The target's queries, which blocks are scored with."""

from collections.abc import Callable

from torch import Tensor
from vllm.model_executor.layers.attention import Attention

from vllm_std.patches.wrapping import Patch
from vllm_std.steps import leaves_queries

QUERIES = Patch(
    name="queries",
    replaces="Attention.impl.forward of each target layer (reads the query, then calls it unchanged)",
    why="no hook gives a speculator the target's queries; a module hook is lost in torch.compile",
    upstream="vLLM RFC #47351",
    remove_when="vLLM hands queries to speculators as it hands auxiliary hidden states",
)


def observe_queries(layer: Attention, index: int, capture: Callable[[int, Tensor, Tensor], None]) -> None:
    """Call capture(index, query, query_start_loc) before each forward of a layer.

    query: [tokens, query heads, head size] with RoPE; query_start_loc: [reqs + 1] int32. Only in passes that leave
    queries.
    """
    original = layer.impl.forward

    def forward(layer_, query, key, value, kv_cache, attn_metadata, *args, **kwargs):
        if attn_metadata is not None and leaves_queries(attn_metadata.max_query_len):
            capture(index, query, attn_metadata.query_start_loc)
        return original(layer_, query, key, value, kv_cache, attn_metadata, *args, **kwargs)

    layer.impl.forward = forward


def query_scale(layer: Attention) -> float:
    """The softmax scale of a layer, for its queries as `observe_queries` gives them (quantised with fp8 keys)."""
    quantised = getattr(layer, "query_quant", None) is not None
    return layer.impl.scale * (layer._q_scale_float if quantised else 1.0)
