"""For `askers.py`: a Llama in plain torch, and prompts that are computed once with all keys, values and queries."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import rms_norm, silu
from torch.nn.functional import scaled_dot_product_attention as attention


class Model:
    """A Llama's weights, and a pass over [tokens] at any positions with the attention given."""

    def __init__(self, name: str):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
        config, self.tokenizer = model.config, AutoTokenizer.from_pretrained(name)
        self.inner, self.head, self.eps = model.model, model.lm_head.weight.detach(), config.rms_norm_eps
        self.layers, self.kv_heads = config.num_hidden_layers, config.num_key_value_heads
        self.heads, self.size = config.num_attention_heads, config.hidden_size // config.num_attention_heads
        theta = config.rope_parameters["rope_theta"] ** (-torch.arange(0, self.size, 2).double() / self.size)
        angles = torch.arange(config.max_position_embeddings)[:, None] * theta
        self.cos, self.sin = (torch.cat([part, part], -1).float() for part in (angles.cos(), angles.sin()))

    @torch.inference_mode()
    def run(self, ids: Tensor, positions: Tensor, attend, last: int) -> Tensor:
        """[last, vocabulary] logits of the last tokens. attend(layer, query, key, value): each [tokens, heads, size]"""
        hidden = self.inner.embed_tokens(ids)
        for index, layer in enumerate(self.inner.layers):
            of, normed = layer.self_attn, self._norm(hidden, layer.input_layernorm)
            query, key = (self._rope(part(normed), positions) for part in (of.q_proj, of.k_proj))
            value = of.v_proj(normed).unflatten(-1, (-1, self.size))
            hidden = hidden + of.o_proj(attend(index, query, key, value).flatten(1))
            normed = self._norm(hidden, layer.post_attention_layernorm)
            for part, out in zip(normed.split(1024), hidden.split(1024)):  # which bounds memory
                out += layer.mlp.down_proj(silu(layer.mlp.gate_proj(part)) * layer.mlp.up_proj(part))
        return self._norm(hidden[-last:], self.inner.norm) @ self.head.T

    def _norm(self, hidden: Tensor, norm) -> Tensor:
        return rms_norm(hidden, hidden.shape[-1:], norm.weight, self.eps)

    def _rope(self, states: Tensor, positions: Tensor) -> Tensor:
        states = states.unflatten(-1, (-1, self.size))
        first, second = states.chunk(2, -1)
        turned = torch.cat([-second, first], -1)
        return states * self.cos[positions][:, None] + turned * self.sin[positions][:, None]


@dataclass
class Prompt:
    """keys, values: [layers, KV heads, tokens, size] of prompt and answer; queries: [layers, rows, heads, size], of the
    last `window` tokens of the prompt, then of the answer; all float16."""

    id: str
    task: str
    length: int
    window: int
    answer: list[int]
    keys: Tensor
    values: Tensor
    queries: Tensor


def load(path: Path) -> Prompt:
    return Prompt(**torch.load(path))


def record(model: Model, given: dict, path: Path, tokens: int, window: int) -> None:
    """Compute a prompt and its greedy answer, and save it."""
    chat = [{"role": "user", "content": given["prompt"]}]
    ids = torch.tensor(model.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False))
    length, shape = len(ids), (model.layers, model.kv_heads, len(ids) + tokens, model.size)
    keys, values = (torch.zeros(shape, dtype=torch.float16) for _ in range(2))
    queries = torch.zeros(model.layers, window + tokens, model.heads, model.size, dtype=torch.float16)

    def prefill(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = (part.transpose(0, 1) for part in (query, key, value))
        keys[layer, :, :length], values[layer, :, :length] = key, value
        queries[layer, :window] = query[:, -window:].transpose(0, 1)
        states = (part[None] for part in (query, key, value))
        return attention(*states, is_causal=True, enable_gqa=True)[0].transpose(0, 1)

    answer = [int(model.run(ids, torch.arange(length), prefill, 1).argmax())]
    for at in range(length, length + tokens - 1):

        def step(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys[layer, :, at], values[layer, :, at], queries[layer, window + at - length] = key[0], value[0], query[0]
            cached = (part[None, layer, :, : at + 1].float() for part in (keys, values))
            return attention(query.transpose(0, 1)[None], *cached, enable_gqa=True)[0].transpose(0, 1)

        answer.append(int(model.run(torch.tensor(answer[-1:]), torch.tensor([at]), step, 1).argmax()))
    whole = {"id": given["id"], "task": given["task"], "length": length, "window": window, "answer": answer}
    torch.save(whole | {"keys": keys, "values": values, "queries": queries}, path)
