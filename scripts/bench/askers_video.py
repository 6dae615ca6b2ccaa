"""`askers.py` on the real engine, for questions about videos: std's own selection is made to ask in other ways.

A cell is named like a policy of the lab with what differs, `verify:ask=ends` or `verify:again=4`; K, draft length and
temperature follow. The records are those of `vllm-std acceptance`, and `vllm-std report` makes its tables of them.

    python scripts/bench/videos.py --out .cache/videos
    python scripts/bench/askers_video.py vllm_std/tools/demo/tiny-sign-vlm .cache/videos docs/records/askers/video \\
        verify,0.02,12,0 verify:ask=ends,0.02,12,0 verify:again=4,0.02,12,0
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_USE_V2_MODEL_RUNNER": "1"}

import torch
import typer
from rich.console import Console
from torch import Tensor

from vllm_std.draft import speculator, target
from vllm_std.mask import cdiv
from vllm_std.selection import definition, loops, native, reads
from vllm_std.selection.key_layout import key_layout, raw
from vllm_std.selection.policies import Verify
from vllm_std.selection.queries import QueryWindow
from vllm_std.selection.selector import Selector
from vllm_std.tools.acceptance import run as lab
from vllm_std.tools.acceptance.grid import Cell
from vllm_std.tools.acceptance.policies import POLICIES
from vllm_std.tools.acceptance.records import Records
from vllm_std.tools.acceptance.settings import LabSettings
from vllm_std.tools.prompts import load_prompts

ENGINE = {"dtype": "float32", "block_size": 32, "enforce_eager": True, "max_model_len": 9216}
ENGINE |= {"max_num_batched_tokens": 9216, "kv_cache_memory_bytes": 800_000_000}
ENGINE |= {"media_io_kwargs": {"video": {"video_backend": "opencv", "num_frames": -1}}}
TOKENS, TOGETHER, SINK, RECENT = 240, 6, 16, 32
DRAFT_EAGERLY = speculator.StdSpeculator._draft_eagerly


@dataclass
class Way:
    """What differs from std; the rest is where a round is. See `askers.Cell`."""

    ask: str = "last"
    again: int = 0
    decay: float = 0.0
    candidates: int = reads.CANDIDATES_PER_CHOSEN
    step: int | None = None  # of the draft that runs, where its queries are kept
    drafted: Tensor | None = None  # [layers, reqs, drafts, heads, size]
    drafts: int = 0  # of them that ask too
    scores: Tensor | None = None  # [layers, slots, blocks] of earlier rounds


way = Way()


def askers(scorer: Any, seen: Any, rows: Tensor) -> Tensor:
    """[layers, rows, KV heads * askers * group, size]: to the loops each asker is a few more heads of a group."""
    kept, last = scorer.queries[:, rows], seen.last_query[rows].long()
    queries = [kept[:, rows, last]]
    if way.ask == "ends":
        queries.append(kept[:, :, 0])
    elif way.ask == "all":  # a query of zeros asks for all blocks alike
        queries += [kept[:, :, row] * (row < last)[None, :, None, None] for row in range(kept.shape[2])]
    if way.drafted is not None:
        queries += way.drafted[:, rows, : way.drafts].unbind(2)
    split = torch.stack(queries, 2).float().unflatten(3, (scorer.means.shape[2], -1)).transpose(2, 3)
    return split.flatten(2, 4).contiguous() * scorer.scales[:, None, None, None]


def score(scorer: Any, cache: Any, seen: Any, num_rows: int, ranking: Any) -> None:
    """In place of `native.score`."""
    rows, mask = torch.arange(num_rows), scorer.mask
    if way.decay:
        return score_with_memory(scorer, cache, seen, seen.scored_lens[:num_rows].nonzero()[:, 0], num_rows, ranking)
    read = scorer.reads.blocks(cdiv(seen.scored_lens[:num_rows], mask.block_size))
    loops.score(
        *key_layout(cache), *raw(scorer.means), askers(scorer, seen, rows).numpy(),
        seen.scored_lens[:num_rows].numpy(), read.numpy(), seen.slots.numpy(), seen.block_table.numpy(),
        mask.block_size, mask.sink, mask.recent, ranking.blocks.numpy(), ranking.scores.numpy(),
        ranking.scored_until.numpy(),
    )  # fmt: skip


def score_with_memory(scorer: Any, cache: Any, seen: Any, rows: Tensor, num_rows: int, ranking: Any) -> None:
    if way.scores is None:
        way.scores = torch.zeros(len(scorer.means), len(seen.slots), scorer.workspace.width)
    slots, mass = seen.slots[rows].long(), torch.zeros(num_rows, scorer.workspace.width)
    for layer in range(len(scorer.means)):
        if len(rows):
            new = definition.verify_scores(scorer, cache, seen, layer, rows)
            way.scores[layer, slots, : new.shape[1]] = new + way.decay * way.scores[layer, slots, : new.shape[1]]
            mass[rows] = way.scores[layer, slots]
        definition.keep_top_k(ranking, mass, seen, layer)


def draft_eagerly(self, batch, length) -> None:
    """In place of `StdSpeculator._draft_eagerly`: blocks are scored again after every `again` drafts, by theirs too."""
    if batch.metadata is None or not way.again:
        return DRAFT_EAGERLY(self, batch, length)
    with speculator.step_context(self, batch, speculator.EAGER):
        for way.step in range(length):
            self.std.drafting = False
            self._step(batch)
            self.std.drafting = True
            way.drafts = way.step + 1
            if way.drafts % way.again == 0:
                lengths = self.input_buffers.seq_lens.clone()
                self.std.selector.select(batch.num_reqs, self.input_buffers.seq_lens)
                self.input_buffers.seq_lens.copy_(lengths)
    way.step, way.drafts = None, 0


def observe(layer: Any, index: int, see: Any) -> None:
    """In place of `queries.observe_queries`: in draft steps too, where they ask."""
    forward = layer.impl.forward

    def observed(layer_, query, key, value, kv_cache, metadata, *args, **kwargs):
        if metadata is not None and (metadata.max_query_len > 1 or way.step is not None):
            see(index, query, metadata.query_start_loc)
        return forward(layer_, query, key, value, kv_cache, metadata, *args, **kwargs)

    layer.impl.forward = observed


def install() -> None:
    see, change, begin = QueryWindow.capture, Selector.change, Selector.begin

    def see_drafts(self, layer, query, query_start_loc):
        if way.step is None:
            return see(self, layer, query, query_start_loc)
        layers, reqs, window, heads, size = self.kept.shape
        if way.drafted is None:
            way.drafted = torch.zeros(layers, reqs, window, heads, size)
        way.drafted[layer, : len(query), way.step] = query.view(-1, heads, size).float()

    def change_way(self, policy=None, **options):
        given = dict(part.split("=") for part in getattr(policy, "parts", ()))
        known = {"ask": str, "again": int, "decay": float, "candidates": int}
        fresh = replace(Way(), **{name: known[name](value) for name, value in given.items()})
        vars(way).update(vars(fresh))
        reads.CANDIDATES_PER_CHOSEN = way.candidates
        return change(self, policy, **options)

    def begin_anew(self, seen, slots, drafting, has_queries):
        if way.scores is not None:
            way.scores[:, torch.as_tensor(slots[self.rounds[slots] == 0], dtype=torch.long)] = 0
        return begin(self, seen, slots, drafting, has_queries)

    QueryWindow.capture, Selector.change, Selector.begin = see_drafts, change_way, begin_anew
    native.score, target.observe_queries = score, observe
    speculator.StdSpeculator._draft_eagerly = draft_eagerly


def main(model: str, videos: Path, out: Path, cells: list[str], limit: int | None = None) -> None:
    """Ask the questions of a folder of videos in each cell; goes on where it was stopped."""
    install()
    grid = []
    for policy, k, gamma, heat in (text.split(",") for text in cells):
        POLICIES.setdefault(policy, Verify()).parts = policy.split(":")[1:]
        grid.append(Cell(policy, float(k) if "." in k else int(k), int(gamma), 1, float(heat)))
    plan = LabSettings(model, grid, TOKENS, TOGETHER, limit, 0, SINK, RECENT, ENGINE)
    records, prompts = Records(out), load_prompts([], [videos])
    if lab.missing(plan, prompts, records):
        lab.run(lab.start(plan, [videos]), plan, prompts, records, Console(stderr=True))


if __name__ == "__main__":
    typer.run(main)
