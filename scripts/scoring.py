"""Which estimate of a block's attention picks the blocks that get drafts accepted? `verify` was chosen by this.

Each way of scoring decodes the same videos in the oracle, greedy, with blocks of 32 tokens. Resumes; without --model it
prints the table.

    python scripts/scoring.py --out scoring.jsonl --model vllm_std/demo/tiny-sign-vlm
"""

import argparse
from itertools import product
from pathlib import Path

import torch
from per_head import SHARES, Primed, add_record, load, read_records, videos
from torch import Tensor
from transformers import AutoModelForImageTextToText

from vllm_std.reference import POLICIES, Options, Reference, attention, logits

SETTINGS = dict(block_size=32, recent=32, sink=16, gamma=5)
LEAST = 3 * 32  # sink, recent window and one block


def granules(keys: Tensor, size: int) -> Tensor:
    """[KV heads, granules, size, head size] of the complete granules."""
    whole = keys.shape[1] // size
    return keys[:, : whole * size].float().unflatten(1, (whole, size))


def by_block(mass: Tensor, per: int) -> Tensor:
    """[KV heads, group, 1, granules] logits -> [KV heads, blocks] attention."""
    mass = mass.softmax(-1).sum((1, 2))
    return torch.nn.functional.pad(mass, (0, -mass.shape[1] % per + per)).unflatten(1, (-1, per)).sum(-1)


def bound(queries: Tensor, keys: Tensor, scale: float, options: Options) -> Tensor:
    """The largest logit that a key between a granule's least and greatest could have (Quest, arXiv 2406.10774)."""
    parts = granules(keys, 16)
    positive, negative = queries[-1:].clamp(min=0), queries[-1:].clamp(max=0)
    best = logits(positive, parts.amax(2), scale) + logits(negative, parts.amin(2), scale)
    return by_block(best, options.block_size // 16)


def spread(queries: Tensor, keys: Tensor, scale: float, options: Options) -> Tensor:
    """Mean keys, and what keys spread about them as much in every channel would add to the mass (a cumulant more)."""
    parts = granules(keys, 16)
    variance = parts.var(2, unbiased=False).mean(-1)[:, None, None]
    size = queries[-1:].float().square().sum(-1).unflatten(1, (keys.shape[0], -1)).permute(1, 2, 0)[..., None]
    mean = logits(queries[-1:], parts.mean(2), scale)
    return by_block(mean + 0.5 * scale**2 * size * variance, options.block_size // 16)


POLICIES |= {"window": attention, "bound": bound, "spread": spread}
WAYS = {
    "exact, token verified last": dict(selection="exact"),
    "exact, all tokens just verified": dict(selection="window"),
    "mean key of 16 tokens": dict(selection="verify", candidates=0),
    "mean key of 8 tokens": dict(selection="verify", candidates=0, granule=8),
    "mean key of 16, 1x candidates read": dict(selection="verify", candidates=1),
    "mean key of 16, 2x candidates read": dict(selection="verify", candidates=2),
    "mean key of 16, 3x candidates read": dict(selection="verify", candidates=3),
    "mean and spread of 16 tokens": dict(selection="spread"),
    "least and greatest of 16 tokens": dict(selection="bound"),
    "once, at the prompt's end": dict(selection="text"),
    "sink and recent only": dict(selection="streaming"),
}


def measure(out: Path, model, prompts) -> None:
    rows = read_records(out)
    for prompt, inputs, tokens in prompts:
        length, first = inputs["input_ids"].shape[1], Reference(model, Options(1024, **SETTINGS))
        with torch.inference_mode():
            read = first._prompt(dict(inputs))
        for share, (way, changes) in product(SHARES, WAYS.items()):
            row = {"prompt": prompt, "share": share, "way": way}
            if any(row.items() <= done.items() for done in rows):
                continue
            options = Options(max(LEAST, round(share * length)), **SETTINGS, **changes)
            decoded = Primed(model, options, first, read, 1).decode(inputs, tokens)
            row |= {"top_k": options.top_k, "prompt_tokens": length, **decoded.counts}
            add_record(out, row)
            print(*row.values(), flush=True)


def table(rows: list[dict]) -> None:
    print("| scoring | " + " | ".join(f"{share:.1%}" for share in SHARES) + " |")
    for way in WAYS:
        cells = [[row for row in rows if (row["way"], row["share"]) == (way, share)] for share in SHARES]
        shown = [sum(r["accepted"] for r in cell) / max(1, sum(r["drafted"] for r in cell)) for cell in cells]
        print(f"| {way} | " + " | ".join(f"{value:.3f}" for value in shown) + " |")
    print(f"{len({row['prompt'] for row in rows})} prompts")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    args = parser.parse_args()
    if args.model is not None:
        measure(args.out, load(args.model, AutoModelForImageTextToText), videos(args.model))
    table(read_records(args.out))


if __name__ == "__main__":
    main()
