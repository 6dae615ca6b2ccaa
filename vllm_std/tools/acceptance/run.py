"""Runs the grid on one engine: chunks of prompts outside, cells inside, so that each prompt is prefilled once."""

import os
import time
import zlib
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from vllm import LLM, EngineArgs, SamplingParams

from vllm_std.patches import lab, offline
from vllm_std.tools.acceptance.grid import Cell
from vllm_std.tools.acceptance.policies import POLICIES
from vllm_std.tools.acceptance.records import Records, count
from vllm_std.tools.acceptance.settings import LabSettings
from vllm_std.tools.prompts import Prompt, digest

# Arguments of the engine that the lab sets itself.
OURS = ("model", "speculative_config", "enable_prefix_caching", "mm_processor_cache_gb", "disable_log_stats", "seed")


def start(settings: LabSettings, folders: list[Path]) -> LLM:
    """The engine: std with the largest K and gamma of the grid; folders: of videos that prompts name.

    Raises ValueError for arguments that the lab sets itself or that vLLM does not have.
    """
    known = {field.name for field in fields(EngineArgs)}
    for name in settings.engine:
        if name in OURS:
            raise ValueError(f"--engine {name} is set by the lab: leave it out.")
        if name not in known:
            raise ValueError(f"--engine {name} is not an argument of vLLM: give names as in vllm.EngineArgs.")
    options: dict[str, Any] = {
        "max_num_seqs": settings.batch,
        "enable_prefix_caching": True,
        # Without vLLM's cache of processed videos each prompt carries its own, and any of them can be asked first.
        "mm_processor_cache_gb": 0,
        "seed": settings.seed,
    }
    if folders:
        options["allowed_local_media_path"] = os.path.commonpath([folder.resolve() for folder in folders])
    return LLM(model=settings.model, speculative_config=_speculative(settings), **options | settings.engine)


def _speculative(settings: LabSettings) -> dict[str, Any]:
    largest = max(settings.cells, key=lambda cell: cell.k)
    sampled = any(cell.temperature for cell in settings.cells)
    return {
        "method": "std", "adaptive": False, **largest.options, "selection": "verify", "refresh": 1,
        "sink": settings.sink, "recent": settings.recent, "num_speculative_tokens": settings.max_gamma,
        "proposals": settings.proposals,
        # At temperature 0 greedy drafts are what probabilistic ones are, without the memory of their logits.
        "draft_sample_method": "probabilistic" if sampled else "greedy",
    }  # fmt: skip


def missing(settings: LabSettings, prompts: list[Prompt], records: Records) -> set[tuple[str, Cell]]:
    """(prompt id, cell) pairs that are asked for and have no record."""
    return {(prompt.id, cell) for prompt in prompts[: settings.limit] for cell in settings.cells} - records.done()


def run(llm: LLM, settings: LabSettings, prompts: list[Prompt], records: Records, console: Console) -> None:
    """Add a record for each prompt and cell that has none. Raises ValueError for a cell that std cannot do."""
    todo = missing(settings, prompts, records)
    waiting = [prompt for prompt in prompts if any((prompt.id, cell) in todo for cell in settings.cells)]
    columns = BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()
    with lab.attach(llm) as bench, Progress(TextColumn("{task.description}"), *columns, console=console) as progress:
        for cell in settings.cells:  # so that a cell that cannot be is known at once
            bench.switch(cell.gamma, POLICIES[cell.policy], **cell.options)
        records.begin(**settings.recorded(), **bench.facts(), prompts=digest(prompts))
        task = progress.add_task("", total=len(todo))
        for first in range(0, len(waiting), settings.batch):
            chunk = waiting[first : first + settings.batch]
            inputs = {prompt.id: offline.render(bench.llm, prompt.messages, prompt.id) for prompt in chunk}
            _warn_of_recomputing(bench, settings, inputs, console)
            for cell in settings.cells:
                asked = [prompt for prompt in chunk if (prompt.id, cell) in todo]
                progress.update(task, description=f"{cell}")
                for record in _answers(bench, settings, cell, asked, inputs) if asked else ():
                    records.add(record)
                progress.advance(task, len(asked))


def _warn_of_recomputing(bench: lab.Bench, settings: LabSettings, inputs: dict[str, Any], console: Console) -> None:
    needed = sum(len(given["prompt_token_ids"]) + settings.tokens for given in inputs.values())
    if needed > bench.cache_tokens():
        console.print(
            f"The KV cache holds {bench.cache_tokens():,} tokens and these {len(inputs)} prompts take {needed:,}: they "
            f"are prefilled again in every cell. A smaller --batch or a larger KV cache avoids that.",
            style="yellow",
        )


def _answers(
    bench: lab.Bench, settings: LabSettings, cell: Cell, prompts: list[Prompt], inputs: dict[str, Any]
) -> list[dict]:
    """One record for each prompt, decoded together in one cell."""
    seeds = [settings.seed + zlib.crc32(prompt.id.encode()) for prompt in prompts]
    shared = {"temperature": cell.temperature, "max_tokens": settings.tokens}
    params = [SamplingParams(seed=seed, **shared) for seed in seeds]
    bench.switch(cell.gamma, POLICIES[cell.policy], **cell.options)
    begun = time.perf_counter()
    outputs = offline.generate(bench.llm, [inputs[prompt.id] for prompt in prompts], params)
    seconds = time.perf_counter() - begun
    passes, steps = bench.passes(), bench.draft_steps()
    return [
        {
            "prompt": prompt.id, "task": prompt.task, **vars(cell), "seed": seed,
            "context": len(output.prompt_token_ids), "cached": output.num_cached_tokens,
            **_answer(prompt, output.outputs[0], passes[output.request_id], cell.gamma),
            **steps.get(output.request_id, {}),
            "batch": len(prompts), "batch_seconds": round(seconds, 3),
        }
        for prompt, seed, output in zip(prompts, seeds, outputs)
    ]  # fmt: skip


def _answer(prompt: Prompt, answer, passes: list[tuple[int, int]], gamma: int) -> dict:
    right = None if prompt.answer is None else answer.text.strip() == prompt.answer.strip()
    tokens = list(answer.token_ids)
    return {"generated": len(tokens), **count(passes, len(tokens), gamma), "right": right, "tokens": tokens}
