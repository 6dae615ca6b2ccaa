"""Does a mask for each KV head accept more drafts than one a layer, where every head keeps top_k tokens either way?

`layer` is one mask for all heads, `head` one for each KV head. `query` is one for each query head: KV heads are
repeated until each query head has its own, which is the same function, and gives a mask all the freedom there is.
The oracle decides; a prompt is read once, and all its cells begin there. Resumes; without --model, prints the table.

    python scripts/per_head.py --out video.jsonl --model vllm_std/demo/tiny-sign-vlm
    python scripts/per_head.py --out text.jsonl --model .cache/smollm2 --prompts prompts.jsonl --few 3
"""

import argparse
import copy
import json
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, DynamicCache

from vllm_std.demo.rope_index import original_rope_index
from vllm_std.demo.sign_video import SignVideo
from vllm_std.lab.stats import difference  # noqa: E402
from vllm_std.reference import Options, Reference  # noqa: E402

VIEWS, SELECTIONS, SHARES = ("layer", "head", "query"), ("exact", "verify"), (0.02, 0.05, 0.125)
SETTINGS = dict(block_size=16, recent=32, sink=16, gamma=5)
LEAST = 16 + 32 + 16  # sink, recent window and one block


def repeat_kv(model):
    """A copy of `model` in which each query head has a KV head of its own."""
    model = copy.deepcopy(model)
    for attention in (layer.self_attn for layer in model.get_decoder().layers):
        for linear in (attention.k_proj, attention.v_proj):
            for name, old in list(linear.named_parameters()):
                heads = old.data.unflatten(0, (-1, attention.head_dim))
                new = heads.repeat_interleave(attention.num_key_value_groups, dim=0).flatten(0, 1)
                setattr(linear, name, nn.Parameter(new))
    return model


class Primed(Reference):
    """Begins where `first`, another Reference, has read the prompt. repeat: its KV heads, for the `query` view."""

    def __init__(self, model, options: Options, first: Reference, read: tuple, repeat: int):
        super().__init__(model, options)
        self.first, self.read, self.repeat = first, read, repeat

    def _prompt(self, inputs):
        self.cache, self.prompt_scores = DynamicCache(), {}
        for index, layer in enumerate(self.first.cache.layers):
            self.cache.update(*(x.repeat_interleave(self.repeat, 1) for x in (layer.keys, layer.values)), index)
        self.rope_delta, self.prompt_length = self.first.rope_delta, self.first.prompt_length
        return list(self.read[0]), self.read[1]


def load(folder: Path, kind):
    """A model of transformers' class `kind` in float32, on one thread."""
    torch.set_num_threads(1)
    model = kind.from_pretrained(folder, dtype=torch.float32)
    if kind is AutoModelForImageTextToText:
        model.base_model.get_rope_index = original_rope_index
    return model


def read_records(out: Path) -> list[dict]:
    return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


def add_record(out: Path, row: dict) -> None:
    with out.open("a") as file:
        file.write(json.dumps(row) + "\n")


def videos(folder: Path):
    """(id, inputs, tokens of the answer) of each length and task; answers of 4 to 6 sentences."""
    processor = AutoProcessor.from_pretrained(folder)
    for number, (scenes, task) in enumerate(product((60, 110, 220), ("list", "range", "follow"))):
        film = SignVideo(scenes, seed=100 + scenes)
        asked = film.ask(task, sentences=4 + (number + 1) % 3)
        prompt = film.prompt(asked["question"])
        frames = prompt["multi_modal_data"]["video"][0][0]
        inputs = processor(text=[prompt["prompt"]], videos=[frames], return_tensors="pt")
        yield f"{task}-{scenes}-1", inputs, 1 + len(processor.tokenizer(asked["answer"])["input_ids"])


def texts(folder: Path, prompts: Path, count: int):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for prompt in map(json.loads, prompts.read_text().splitlines()[:count]):
        chat = [{"role": "user", "content": prompt["prompt"]}]
        kind = dict(add_generation_prompt=True, return_tensors="pt", return_dict=True)
        yield prompt["id"], tokenizer.apply_chat_template(chat, **kind), 40


def measure(out: Path, model, prompts, few: int) -> None:
    rows = read_records(out)
    attention, repeated = model.get_decoder().layers[0].self_attn, repeat_kv(model)
    for number, (prompt, inputs, tokens) in enumerate(prompts):
        length, first = inputs["input_ids"].shape[1], None
        for share, selection, view in product(SHARES, SELECTIONS, VIEWS):
            row = {"prompt": prompt, "selection": selection, "share": share, "view": view}
            left_out = view == "query" and few and (number >= few or share != 0.05)
            if left_out or any(row.items() <= done.items() for done in rows):
                continue
            options = Options(
                max(LEAST, round(share * length)), **SETTINGS, selection=selection, per_head=view != "layer"
            )
            if first is None:
                first = Reference(model, options)
                with torch.inference_mode():
                    read = first._prompt(dict(inputs))
            its = (repeated, attention.num_key_value_groups) if view == "query" else (model, 1)
            decoded = Primed(its[0], options, first, read, its[1]).decode(inputs, tokens)
            row |= {"top_k": options.top_k, "prompt_tokens": length, **decoded.counts, "tokens": decoded.tokens}
            add_record(out, row)
            print(*list(row.values())[:-1], flush=True)


def table(rows: list[dict]) -> None:
    """Acceptance of each view, and what it has over `layer` on the same prompts."""
    print("selection  share view   prompts  drafts  acceptance  over layer")
    for selection, share, view in product(SELECTIONS, SHARES, VIEWS):
        cells = [
            {
                row["prompt"]: row
                for row in rows
                if (row["selection"], row["share"], row["view"]) == (selection, share, one)
            }
            for one in (view, "layer")
        ]
        if both := [prompt for prompt in cells[0] if prompt in cells[1]]:
            drafted, accepted = (
                np.array([[c[p][key] for p in both] for c in cells]) for key in ("drafted", "accepted")
            )
            end = "" if view == "layer" else "{:+.3f} {}".format(*difference(drafted, accepted))
            acceptance = accepted[0].sum() / drafted[0].sum()
            print(f"{selection:9}{share:7.1%} {view:6}{len(both):8}{drafted[0].sum():8}{acceptance:12.3f}  {end}")
    answers = {(row["prompt"], tuple(row["tokens"])) for row in rows}
    print(f"{len({prompt for prompt, _ in answers})} prompts, {len(answers)} different answers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="records, a JSON line each")
    parser.add_argument("--model", type=Path, help="folder")
    parser.add_argument("--prompts", type=Path, help="of scripts/prompts.py; else videos")
    parser.add_argument("--count", type=int, default=6, help="prompts")
    parser.add_argument("--few", type=int, default=0, help="prompts with the `query` view, and at 5 %% only; 0: all")
    args = parser.parse_args()
    if args.model:
        model = load(args.model, AutoModelForCausalLM if args.prompts else AutoModelForImageTextToText)
        prompts = texts(args.model, args.prompts, args.count) if args.prompts else videos(args.model)
        measure(args.out, model, prompts, args.few)
    table(read_records(args.out))


if __name__ == "__main__":
    main()
