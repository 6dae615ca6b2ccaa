"""The oracle: sparse-to-dense decoding (arXiv 2505.19155) on transformers alone, one greedy request, told plainly.

    model = AutoModelForCausalLM.from_pretrained(NAME, dtype=torch.float32)
    decoded = Reference(model, Options(top_k=1024, block_size=16)).decode({"input_ids": ids}, max_tokens=64)

Tests hold the vLLM path against it: blocks, drafts and accepted lengths are the same in float32. So it shares no code
with the rest of the package, and prefers lists to speed. Queries and keys come here, with RoPE applied, through
transformers' attention interface; K/V live in a `DynamicCache`.

On CPU attention is torch's. On CUDA all passes but the prompt's are xformers' paged attention over the blocks kept, in
float16 or bfloat16: xformers has no CPU path and is imported there only. Its kernel needs a Triton that has block
pointers (3.6 does, 3.9 does not).
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, DynamicCache

NAME = "vllm_std_reference"
PAGED_QUERIES = 16  # the most that xformers' split-K kernel takes with a causal mask


@dataclass(frozen=True)
class Options:
    """In tokens; as in `config.StdConfig`. per_head: a mask for each KV head instead of one a layer.

    granule: tokens in one key summary of `verify`. candidates: blocks whose keys it reads, for each block to choose;
    but none for the first `enough` blocks of a context, for each block to choose.
    """

    top_k: int
    block_size: int
    selection: str = "verify"
    gamma: int = 5
    sink: int = 16
    recent: int = 64
    per_head: bool = False
    granule: int = 16
    candidates: int = 3
    enough: int = 2

    def blocks(self, tokens: int) -> int:
        return math.ceil(tokens / self.block_size)

    @property
    def top(self) -> int:
        """Blocks to choose between sink and recent window."""
        return self.blocks(self.top_k) - self.blocks(self.sink) - self.blocks(self.recent)

    def first_recent(self, length: int) -> int:
        """The block in which the recent window begins."""
        return max(0, length - self.recent) // self.block_size


@dataclass
class Round:
    """One round (section 3). length: verified tokens whose K/V are cached when it begins.

    chosen: [layers][masks] sorted block indices between sink and recent window; scores: [layers] of [masks, blocks].
    Masks: one a layer, or one a KV head. accepted: how many of `drafts` the dense pass agreed with.
    """

    length: int
    chosen: list[list[list[int]]]
    scores: list[Tensor]
    drafts: list[int] = field(default_factory=list)
    accepted: int = 0


@dataclass
class Decoded:
    tokens: list[int]
    rounds: list[Round]

    @property
    def counts(self) -> dict[str, int]:
        """`rounds`, and tokens `drafted` and `accepted` in them."""
        drafted, accepted = sum(len(r.drafts) for r in self.rounds), sum(r.accepted for r in self.rounds)
        return {"rounds": len(self.rounds), "drafted": drafted, "accepted": accepted}

    @property
    def acceptance(self) -> float:
        """Accepted share of drafted tokens."""
        return self.counts["accepted"] / max(1, self.counts["drafted"])


@dataclass
class Pass:
    """One forward pass. kept: [layers][masks] blocks it attends to, None when dense; queries, scales: what it saw.

    queries: [layers] of [tokens, heads, head size]; scales: [layers] softmax scales.
    """

    block_size: int
    kept: list[list[list[int]]] | None = None
    queries: dict[int, Tensor] = field(default_factory=dict)
    scales: dict[int, float] = field(default_factory=dict)


# ------------------------------------------------------------ attention


def attend(module, query, key, value, attention_mask, scaling=None, std_pass: Pass | None = None, **_):
    """transformers' attention interface; plain causal attention where no `std_pass` comes along.

    query: [1, heads, n, head size]; key, value: [1, KV heads, tokens, head size], the last n of them the queries' own.
    """
    n, tokens, kept = query.shape[2], key.shape[2], None
    if std_pass is not None:
        std_pass.queries[module.layer_idx] = query[0].transpose(0, 1)
        std_pass.scales[module.layer_idx] = scaling
        kept = std_pass.kept[module.layer_idx] if std_pass.kept else None
    if n == tokens:
        out = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
    elif query.is_cuda and std_pass is not None and n <= PAGED_QUERIES:
        every = [list(range(math.ceil(tokens / std_pass.block_size)))]
        out = paged_attention(query, key, value, kept or every, std_pass.block_size, scaling)
    else:
        visible = torch.ones(n, tokens, dtype=torch.bool, device=query.device).tril(tokens - n)
        if kept is not None and std_pass is not None:
            visible = visible & tokens_of(kept, tokens, std_pass.block_size).to(query.device)
            visible = visible.repeat_interleave(query.shape[1] // len(kept), dim=0)
        out = scaled_dot_product_attention(query, key, value, visible, scale=scaling, enable_gqa=True)
    return out.transpose(1, 2), None


def tokens_of(kept: list[list[int]], tokens: int, block_size: int) -> Tensor:
    """[masks, 1, tokens] whether a token is in a block kept."""
    mask = torch.zeros(len(kept), 1, tokens, dtype=torch.bool)
    for row, blocks in zip(mask, kept):
        for block in blocks:
            row[:, block * block_size : (block + 1) * block_size] = True
    return mask


def paged_attention(query, key, value, kept: list[list[int]], block_size: int, scale: float) -> Tensor:
    """[1, heads, n, head size] by xformers. kept: [masks] blocks, as many for each mask, the last block among them.

    Every KV head with its query heads is a sequence of its own, so masks may differ by head.
    """
    from xformers.ops import fmha
    from xformers.ops.fmha.attn_bias import PagedBlockDiagonalCausalWithOffsetPaddedKeysMask as PagedMask

    (_, kv_heads, tokens, head_size), n, group = key.shape, query.shape[2], query.shape[1] // key.shape[1]
    pages = math.ceil(tokens / block_size)
    unused = pages * block_size - tokens
    rows = [[head * pages + b for b in kept[head % len(kept)] if b < pages] for head in range(kv_heads)]
    length = len(rows[0]) * block_size - unused
    table = torch.tensor(rows, dtype=torch.int32, device=query.device)
    mask = PagedMask.from_seqlens([n] * kv_heads, [length] * kv_heads, table, block_size, device=query.device)
    key, value = (
        pad(x[0], (0, 0, 0, unused)).view(1, -1, 1, head_size).expand(-1, -1, group, -1) for x in (key, value)
    )
    queries = query[0].unflatten(0, (kv_heads, group)).transpose(1, 2).reshape(1, -1, group, head_size)
    # The kernel reads keys in tiles of 64, and a tile must not be wider than a page.
    kernel = type("Paged", (fmha.triton_splitk.FwOp,), {"BLOCK_N": min(64, block_size)})
    out = fmha.memory_efficient_attention_forward(queries, key, value, attn_bias=mask, scale=scale, op=kernel)
    return out.view(kv_heads, n, group, head_size).transpose(1, 2).reshape(query.shape)


# ------------------------------------------------------------ selection policies: [KV heads, blocks], higher is better
# queries: [window, heads, head size] of verified tokens; keys: [KV heads, length, head size]; scale: softmax scale


def logits(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """[KV heads, group, queries, keys]"""
    grouped = queries.unflatten(1, (keys.shape[0], -1)).float()
    return torch.einsum("wkgd,knd->kgwn", grouped, keys.float()) * scale


def attention(queries: Tensor, keys: Tensor, scale: float, options: Options) -> Tensor:
    """Attention to each block, summed over queries and over the heads of a group."""
    mass = logits(queries, keys, scale).softmax(-1).sum((1, 2)).split(options.block_size, dim=-1)
    return torch.stack([block.sum(-1) for block in mass], dim=-1)


def exact(queries: Tensor, keys: Tensor, scale: float, options: Options) -> Tensor:
    """Attention of the token verified last."""
    return attention(queries[-1:], keys, scale, options)


def verify(queries: Tensor, keys: Tensor, scale: float, options: Options) -> Tensor:
    """The same, the keys of a granule all being its mean; but sink, recent window and the best-looking others are read.

    A block that is not complete has no means.
    """
    length, size = keys.shape[1], options.block_size
    blocks, complete, granule = options.blocks(length), length // size, math.gcd(options.granule, size)
    candidates = range(options.blocks(options.sink), options.first_recent(length))
    whole = keys[:, : complete * size].float().unflatten(1, (-1, granule))
    each = [pad(whole.mean(2).repeat_interleave(granule, dim=1), (0, 0, 0, length - complete * size)), keys]
    each = [logits(queries[-1:], k, scale)[:, :, 0].split(size, dim=-1) for k in each]
    rough, fine = (torch.stack([block.logsumexp(-1) for block in k], dim=-1) for k in each)  # [KV heads, group, blocks]
    rough[..., complete:] = -torch.inf
    looks = rough.softmax(-1).sum(1)  # [KV heads, blocks]
    looks = looks if options.per_head else looks.sum(0, keepdim=True).expand_as(looks)
    always = set(range(blocks)) - set(candidates)
    room = min(options.candidates * options.top, max(0, blocks - options.enough * options.top))
    room += options.blocks(options.sink) + options.blocks(options.recent) + 1
    for head, look in enumerate(looks.tolist()):
        read = [*always, *sorted(candidates, key=lambda block: -look[block])][:room]
        rough[head, :, read] = fine[head, :, read]
    return rough.softmax(-1).sum(1)


def streaming(queries: Tensor, keys: Tensor, scale: float, options: Options) -> Tensor:
    """The latest blocks (arXiv 2309.17453)."""
    return torch.arange(options.blocks(keys.shape[1]), device=keys.device).float().expand(keys.shape[0], -1)


def text(prompt_scores: Tensor, prompt_length: int, length: int, options: Options) -> Tensor:
    """The scores of the prompt's end (section 3.2); what has left the recent window since comes first, newest first."""
    newer = prompt_scores.sum() + torch.arange(options.blocks(length), device=prompt_scores.device)
    scores, full = newer.repeat(prompt_scores.shape[0], 1), options.first_recent(prompt_length)
    scores[:, :full] = prompt_scores[:, :full]
    return scores


POLICIES = {"exact": exact, "verify": verify, "text": attention, "streaming": streaming}  # text: at the prompt's end


# ------------------------------------------------------------ the round


class Reference:
    """Decodes with `model`: any causal LM whose layers call transformers' attention interface, M-RoPE included."""

    def __init__(self, model, options: Options):
        AttentionInterface.register(NAME, attend)
        model.get_decoder().set_attn_implementation(NAME)  # a vision tower keeps its own
        self.model, self.options = model.eval(), options

    @torch.inference_mode()
    def decode(self, inputs: dict[str, Tensor], max_tokens: int) -> Decoded:
        """inputs: `input_ids` [1, tokens] and whatever else a processor returns with them."""
        gamma, rounds = self.options.gamma, []
        tokens, seen = self._prompt(inputs)
        while len(tokens) < max_tokens:
            mine = self._select(seen)
            kept = [[self._kept(mine.length, blocks) for blocks in layer] for layer in mine.chosen]
            while len(mine.drafts) < gamma:
                mine.drafts += self._next([tokens[-1], *mine.drafts][-1:], kept)[0]
            self.cache.crop(-gamma)  # drafted K/V were provisional
            answers, seen = self._next([tokens[-1], *mine.drafts])
            mine.accepted = [*(d == a for d, a in zip(mine.drafts, answers)), False].index(False)
            self.cache.crop(mine.accepted - gamma)
            seen.queries = {layer: queries[: mine.accepted + 1] for layer, queries in seen.queries.items()}
            tokens += answers[: mine.accepted + 1]
            rounds.append(mine)
        return Decoded(tokens[:max_tokens], rounds)

    @torch.inference_mode()
    def dense(self, inputs: dict[str, Tensor], max_tokens: int) -> list[int]:
        """Greedy decoding, one token a pass."""
        tokens, _ = self._prompt(inputs)
        while len(tokens) < max_tokens:
            tokens += self._next(tokens[-1:])[0]
        return tokens

    def _prompt(self, inputs: dict[str, Tensor]) -> tuple[list[int], Pass]:
        """The first token, and the last gamma + 1 queries of the prompt."""
        self.cache, base = DynamicCache(), self.model.base_model
        self.prompt_scores: dict[int, Tensor] = {}
        if hasattr(base, "rope_deltas"):  # M-RoPE: what the last video has left behind
            base.rope_deltas = None
        answers, seen = self._run(inputs)
        delta = getattr(base, "rope_deltas", None)
        self.rope_delta = 0 if delta is None else int(delta)
        self.prompt_length = self.cache.get_seq_length()
        return answers[-1:], seen

    def _next(self, tokens: list[int], kept=None) -> tuple[list[int], Pass]:
        """The greedy next token after each of `tokens`, which are appended to the cache."""
        start = self.cache.get_seq_length() + self.rope_delta
        ids, positions = torch.tensor([[tokens], [range(start, start + len(tokens))]], device=self.model.device)
        return self._run({"input_ids": ids, "position_ids": positions}, kept)

    def _run(self, inputs: dict[str, Tensor], kept=None) -> tuple[list[int], Pass]:
        window, seen = self.options.gamma + 1, Pass(self.options.block_size, kept)
        out = self.model(**inputs, past_key_values=self.cache, logits_to_keep=window, std_pass=seen)
        seen.queries = {layer: queries[-window:] for layer, queries in seen.queries.items()}
        return out.logits[0].argmax(-1).tolist(), seen

    def _select(self, seen: Pass) -> Round:
        length = self.cache.get_seq_length()
        scores = [self._scores(layer, seen, length) for layer in sorted(seen.queries)]
        if not self.options.per_head:
            scores = [score.sum(0, keepdim=True) for score in scores]
        return Round(length, [[self._best(row, length) for row in score.tolist()] for score in scores], scores)

    def _scores(self, layer: int, seen: Pass, length: int) -> Tensor:
        options = self.options
        keys: Tensor = self.cache.layers[layer].keys[0]  # type: ignore[union-attr, index]
        if options.selection == "text" and layer in self.prompt_scores:
            return text(self.prompt_scores[layer], self.prompt_length, length, options)
        score = POLICIES[options.selection](seen.queries[layer], keys, seen.scales[layer], options)
        return self.prompt_scores.setdefault(layer, score) if length == self.prompt_length else score

    def _best(self, scores: list[float], length: int) -> list[int]:
        """The top-K blocks between sink and recent window, in increasing order."""
        options = self.options
        candidates = range(options.blocks(options.sink), options.first_recent(length))
        return sorted(sorted(candidates, key=lambda block: -scores[block])[: options.top])

    def _kept(self, length: int, chosen: list[int]) -> list[int]:
        """[sink | chosen | recent window ... drafted tail]"""
        options, recent = self.options, self.options.first_recent(length)
        sink = range(min(options.blocks(options.sink), recent))
        return [*sink, *chosen, *range(recent, options.blocks(length + options.gamma))]
