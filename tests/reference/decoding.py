"""Rounds of the reference: select, draft, verify."""

import torch
from torch import Tensor
from transformers import AttentionInterface, DynamicCache

from reference.attention import ForwardPass, attend
from reference.options import Decoded, Options, Round
from reference.policies import POLICIES, text

NAME = "vllm_std_reference"


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
        tokens, dense_pass = self._prompt(inputs)
        while len(tokens) < max_tokens:
            mine = self._select(dense_pass)
            kept = [self._kept(mine.length, blocks) for blocks in mine.chosen]
            while len(mine.drafts) < gamma:
                mine.drafts += self._next([tokens[-1], *mine.drafts][-1:], kept)[0]
            self.cache.crop(-gamma)  # drafted K/V were provisional
            answers, dense_pass = self._next([tokens[-1], *mine.drafts])
            mine.accepted = [*(d == a for d, a in zip(mine.drafts, answers)), False].index(False)
            self.cache.crop(mine.accepted - gamma)
            dense_pass.queries = {layer: x[: mine.accepted + 1] for layer, x in dense_pass.queries.items()}
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

    def _prompt(self, inputs: dict[str, Tensor]) -> tuple[list[int], ForwardPass]:
        """The first token, and the last gamma + 1 queries of the prompt."""
        self.cache, base = DynamicCache(), self.model.base_model
        self.prompt_scores: dict[int, Tensor] = {}
        if hasattr(base, "rope_deltas"):  # M-RoPE: what the last video has left behind
            base.rope_deltas = None
        answers, dense_pass = self._run(inputs)
        delta = getattr(base, "rope_deltas", None)
        self.rope_delta = 0 if delta is None else int(delta)
        self.prompt_length = self.cache.get_seq_length()
        return answers[-1:], dense_pass

    def _next(self, tokens: list[int], kept=None) -> tuple[list[int], ForwardPass]:
        """The greedy next token after each of `tokens`, which are appended to the cache."""
        start = self.cache.get_seq_length() + self.rope_delta
        ids, positions = torch.tensor([[tokens], [range(start, start + len(tokens))]], device=self.model.device)
        return self._run({"input_ids": ids, "position_ids": positions}, kept)

    def _run(self, inputs: dict[str, Tensor], kept=None) -> tuple[list[int], ForwardPass]:
        window, forward = self.options.gamma + 1, ForwardPass(self.options.block_size, kept)
        out = self.model(**inputs, past_key_values=self.cache, logits_to_keep=window, std_pass=forward)
        forward.queries = {layer: queries[-window:] for layer, queries in forward.queries.items()}
        return out.logits[0].argmax(-1).tolist(), forward

    def _select(self, dense_pass: ForwardPass) -> Round:
        length = self.cache.get_seq_length()
        scores = [self._scores(layer, dense_pass, length) for layer in sorted(dense_pass.queries)]
        return Round(length, [self._best(layer.tolist(), length) for layer in scores], scores)

    def _scores(self, layer: int, dense_pass: ForwardPass, length: int) -> Tensor:
        options = self.options
        if options.selection == "text" and layer in self.prompt_scores:
            return text(self.prompt_scores[layer], self.prompt_length, length, options)
        keys = self.cache.layers[layer].keys[0]
        score = POLICIES[options.selection](dense_pass.queries[layer], keys, dense_pass.scales[layer], options)
        return self.prompt_scores.setdefault(layer, score) if length == self.prompt_length else score

    def _best(self, scores: list[float], length: int) -> list[int]:
        """The top-K blocks between sink and recent window, in increasing order."""
        ranked = sorted(self.options.between(length), key=lambda block: -scores[block])
        return sorted(ranked[: self.options.top])

    def _kept(self, length: int, chosen: list[int]) -> list[int]:
        """[sink | chosen | recent window ... drafted tail]"""
        options, recent = self.options, self.options.first_recent(length)
        sink = range(min(options.blocks(options.sink), recent))
        return [*sink, *chosen, *range(recent, options.blocks(length + options.gamma))]
