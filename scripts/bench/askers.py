"""Which queries should choose the blocks of the next drafts? Acceptance by draft position, on fixed greedy answers.

A prompt is computed once; then each way of asking drafts along the answer that the dense model gives, which is what
std's greedy answer is whatever drafts propose. For Llama-shaped models, float32 but for keys, values and queries kept.

    python scripts/bench/prompts.py --tokenizer .cache/smollm2 --out prompts.jsonl --count 40 --max-tokens 5500
    python scripts/bench/askers.py record .cache/smollm2 prompts.jsonl
    python scripts/bench/askers.py run .cache/smollm2 gamma=12 gamma=12,ask=ends
    python scripts/bench/askers.py table
"""

import json
import math
from collections import defaultdict
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
import typer
from replay import Model, Prompt, load, record
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.functional import scaled_dot_product_attention as attention

RESULTS = Path(__file__).parents[2] / "docs/records/askers"
BLOCK, SINK, RECENT = 32, 1, 32  # tokens of a KV block; sink in blocks; recent window in tokens
TOKENS, WINDOW = 96, 13  # of an answer; queries of a prompt's end that are kept
TOGETHER = 24  # prompts that draft together


@dataclass(frozen=True)
class Cell:
    """ask: which queries of the last dense pass score the blocks: `last`, the first and the last verified (`ends`), the
    last two (`two`) or `all` verified; again: draft steps after which they are scored again, with those steps' queries
    too; decay: what a round's scores add to the next round's. k: tokens, or a share of the prompt; candidates: blocks
    read for each to choose, less those of the first `enough` times as many of a context; exact: 1 reads all."""

    ask: str = "last"
    k: int | float = 0.05
    gamma: int = 12
    candidates: int = 3
    enough: int = 0
    granule: int = 16
    refresh: int = 1
    again: int = 0
    decay: float = 0.0
    exact: int = 0

    @classmethod
    def of(cls, text: str) -> "Cell":
        kinds = {field.name: field.type for field in fields(cls)}
        given = dict(part.split("=") for part in text.split(",") if part)
        values = {name: value if kinds[name] is str else json.loads(value) for name, value in given.items()}
        return cls(**values)


@dataclass
class Request:
    """A prompt on its way. done: tokens of the answer that a dense pass has taken in; verified: in the last pass."""

    prompt: Prompt
    top: int
    verified: int
    accepted: list[int]
    done: int = 0
    rounds: int = 0
    scores: Tensor | None = None
    chosen: Tensor | None = None
    scored_at: int = 0

    @property
    def length(self) -> int:
        return self.prompt.length + self.done


class Replay:
    """Rounds of all prompts in one cell."""

    def __init__(self, model: Model, prompts: list[Prompt], cell: Cell):
        self.model, self.cell, self.requests = model, cell, []
        for prompt in prompts:
            tokens = cell.k if isinstance(cell.k, int) else math.ceil(cell.k * prompt.length)
            top = max(1, math.ceil(tokens / BLOCK) - SINK - math.ceil(RECENT / BLOCK))
            self.requests.append(Request(prompt, top, cell.gamma + 1, [0] * cell.gamma))

    @torch.inference_mode()
    def run(self) -> list[dict]:
        """A record for each prompt."""
        while waiting := [r for r in self.requests if r.done + self.cell.gamma + 1 < len(r.prompt.answer)]:
            for first in range(0, len(waiting), TOGETHER):
                self._round(waiting[first : first + TOGETHER])
        return [
            {"prompt": r.prompt.id, "task": r.prompt.task, "context": r.prompt.length, "rounds": r.rounds,
             "accepted_by_position": r.accepted} for r in self.requests
        ]  # fmt: skip

    def _round(self, batch: list[Request]) -> None:
        drafts = self._draft(batch)
        for request, drafted in zip(batch, drafts):
            right = request.prompt.answer[request.done + 1 :]
            count = [*(draft == token for draft, token in zip(drafted, right)), False].index(False)
            for position in range(count):
                request.accepted[position] += 1
            request.rounds, request.done, request.verified = request.rounds + 1, request.done + count + 1, count + 1

    def _draft(self, batch: list[Request]) -> list[list[int]]:
        """[requests][gamma] greedy drafts over the masks."""
        picked, gamma, model = [self._select(request, []) for request in batch], self.cell.gamma, self.model
        width = max(tokens.shape[1] for tokens in picked)
        shape = (model.layers, len(batch), model.kv_heads, width + gamma, model.size)
        keys, values = torch.zeros(shape), torch.zeros(shape)
        visible = torch.zeros(len(batch), 1, 1, width + gamma, dtype=torch.bool)
        self._gather(batch, picked, keys, values, visible)
        ids = torch.tensor([request.prompt.answer[request.done] for request in batch])
        positions, drafts, asked = torch.tensor([request.length for request in batch]), [], []
        for step in range(gamma):
            visible[..., width + step] = True
            queries = torch.zeros(len(batch), model.layers, 1, model.heads, model.size)

            def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
                keys[layer, :, :, width + step], values[layer, :, :, width + step] = key, value
                queries[:, layer, 0] = query
                end = width + step + 1
                cached = keys[layer, :, :, :end], values[layer, :, :, :end], visible[..., :end]
                return attention(query[:, :, None], *cached, enable_gqa=True)[:, :, 0]

            ids = model.run(ids, positions + step, attend, len(batch)).argmax(-1)
            drafts.append(ids)
            asked.append(queries)
            if self.cell.again and (step + 1) % self.cell.again == 0:
                picked = [self._select(r, [queries[row] for queries in asked]) for row, r in enumerate(batch)]
                self._gather(batch, picked, keys, values, visible)
        return torch.stack(drafts, 1).tolist()

    def _gather(self, batch, picked: list[Tensor], keys: Tensor, values: Tensor, visible: Tensor) -> None:
        for row, (request, tokens) in enumerate(zip(batch, picked)):
            at = tokens[:, None, :, None].expand(-1, self.model.kv_heads, -1, self.model.size)
            visible[row, ..., : tokens.shape[1]] = True
            for to, cached in ((keys, request.prompt.keys), (values, request.prompt.values)):
                to[:, row, :, : tokens.shape[1]] = cached.gather(2, at).float()

    def _select(self, request: Request, drafted: list[Tensor]) -> Tensor:
        """[layers, kept tokens]: sink, the best blocks, and all that is newer than what was scored."""
        cell, length = self.cell, request.length
        if drafted or request.rounds % cell.refresh == 0:
            scores = self._scores(request, torch.cat([self._askers(request), *drafted], 1))
            if cell.decay and not drafted:
                if request.scores is not None:
                    old = request.scores
                    scores = scores + cell.decay * pad(old, (0, scores.shape[1] - old.shape[1]))
                request.scores = scores
            request.scored_at = max(0, length - RECENT) // BLOCK
            candidates = scores[:, SINK : request.scored_at]
            best = candidates.topk(min(request.top, candidates.shape[1]), -1).indices
            request.chosen = best.sort(-1).values + SINK
        assert request.chosen is not None
        always = torch.cat([torch.arange(SINK), torch.arange(request.scored_at, math.ceil(length / BLOCK))])
        blocks = torch.cat([request.chosen, always.expand(len(request.chosen), -1)], 1)
        tokens = (blocks[..., None] * BLOCK + torch.arange(BLOCK)).flatten(1)
        return tokens[:, : tokens.shape[1] + length - math.ceil(length / BLOCK) * BLOCK]

    def _askers(self, request: Request) -> Tensor:
        """[layers, askers, heads, size]"""
        last = request.prompt.window + request.done - 1
        first = last - request.verified + 1
        rows = {
            "last": [last], "ends": [first, last], "two": [max(first, last - 1), last], "all": range(first, last + 1)
        }  # fmt: skip
        return request.prompt.queries[:, sorted(set(rows[self.cell.ask]))].float()

    def _scores(self, request: Request, queries: Tensor) -> Tensor:
        """[layers, blocks] attention of the askers: by mean keys, and by keys where they are read (`Scorer`)."""
        cell, length, keys = self.cell, request.length, request.prompt.keys
        grouped = queries.unflatten(2, (self.model.kv_heads, -1)).permute(0, 2, 1, 3, 4).flatten(2, 3)
        grouped = grouped * self.model.size**-0.5
        complete, blocks = length // BLOCK, math.ceil(length / BLOCK)
        means = keys[:, :, : complete * BLOCK].unflatten(2, (-1, cell.granule)).float().mean(3)
        lse = torch.full((*grouped.shape[:3], blocks), -torch.inf)
        by_mean = (grouped @ means.transpose(2, 3)).unflatten(3, (complete, -1)).logsumexp(-1)
        lse[..., :complete] = by_mean + math.log(cell.granule)
        looks = lse.softmax(-1).sum((1, 2))
        looks[:, :SINK] = looks[:, max(0, length - RECENT) // BLOCK :] = torch.inf
        more = min(cell.candidates * request.top, max(0, blocks - cell.enough * request.top))
        read = blocks if cell.exact else min(blocks, more + SINK + 2)
        at = looks.topk(read, -1).indices
        tokens = (at[..., None] * BLOCK + torch.arange(BLOCK)).flatten(1)
        place = tokens.clamp(max=length - 1)[:, None, :, None].expand(-1, self.model.kv_heads, -1, self.model.size)
        logits = grouped @ keys.gather(2, place).float().transpose(2, 3)
        logits = logits.masked_fill((tokens >= length)[:, None, None], -torch.inf)
        by_key = logits.unflatten(3, (read, BLOCK)).logsumexp(-1)
        return lse.scatter(-1, at[:, None, None].expand_as(by_key), by_key).softmax(-1).sum((1, 2))


app = typer.Typer(add_completion=False)
KV = Path(".cache/askers")


@app.command("record")
def record_prompts(model: str, prompts: Path, kv: Path = KV) -> None:
    """Compute each prompt and its greedy answer, once; some 50 MB for 1,000 tokens."""
    kv.mkdir(parents=True, exist_ok=True)
    with_weights = Model(model)
    for given in map(json.loads, prompts.read_text().splitlines()):
        if not (kv / f"{given['id']}.pt").exists():
            record(with_weights, given, kv / f"{given['id']}.pt", TOKENS, WINDOW)
            print(given["id"], flush=True)


@app.command()
def run(model: str, cells: list[str], kv: Path = KV, out: Path = RESULTS / "text.jsonl") -> None:
    """Draft along the answers in each cell, such as `ask=ends,gamma=12,k=0.05`; goes on where it was stopped."""
    with_weights, prompts = Model(model), [load(path) for path in sorted(kv.glob("*.pt"))]
    rows = map(json.loads, out.read_text().splitlines()) if out.exists() else ()
    done = {(row["cell"], row["prompt"]) for row in rows}
    for text in cells:
        waiting = [prompt for prompt in prompts if (text, prompt.id) not in done]
        found = Replay(with_weights, waiting, Cell.of(text)).run()
        with out.open("a") as file:
            file.writelines(json.dumps(row | {"cell": text}) + "\n" for row in found)
        print(text, flush=True)


@app.command()
def table(records: Path = RESULTS / "text.jsonl", against: str = "gamma=12") -> None:
    """Tokens a round and acceptance by position of each cell, and its difference to one of them, prompt by prompt."""
    from vllm_std.tools.acceptance.stats import difference

    cells: dict[str, dict[str, dict]] = defaultdict(dict)
    for row in map(json.loads, records.read_text().splitlines()):
        cells[row["cell"]][row["prompt"]] = row
    for text, rows in cells.items():
        accepted = np.sum([row["accepted_by_position"] for row in rows.values()], 0)
        rounds = sum(row["rounds"] for row in rows.values())
        shares = accepted / np.array([rounds, *accepted[:-1]]).clip(1)
        shown = f"| {text} | {len(rows)} | {1 + accepted.sum() / rounds:.2f} | "
        pairs = [(row, cells[against][prompt]) for prompt, row in rows.items() if prompt in cells[against]]
        of = np.array([[(row["rounds"], sum(row["accepted_by_position"])) for row in pair] for pair in pairs])
        value, interval = difference(*of.transpose(2, 1, 0))
        ends = "" if interval is None else f" [{interval[0]:+.2f}, {interval[1]:+.2f}]"
        print(shown + f"{value:+.2f}{ends} | " + " ".join(f"{share:.3f}" for share in shares) + " |")


if __name__ == "__main__":
    app()
