"""Runs the grid on one engine: chunks of prompts outside, cells inside, so that each prompt is prefilled once."""

import os
import time
import zlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vllm_std.tools.acceptance.grid import Cell
from vllm_std.tools.acceptance.records import Records, count
from vllm_std.tools.prompts import Prompt, digest

OURS = ("model", "speculative_config", "enable_prefix_caching", "mm_processor_cache_gb", "disable_log_stats", "seed")


@dataclass(frozen=True)
class Plan:
    """What a run asks of an engine. tokens: most of an answer; batch: prompts that decode
    together; limit: prompts to ask, the first ones of all."""

    model: str
    cells: list[Cell]
    tokens: int
    batch: int
    limit: int | None
    seed: int
    sink: int
    recent: int
    engine: dict[str, Any]

    def settings(self) -> dict[str, Any]:
        """What records must share to be compared, known before the engine is up."""
        from vllm_std import __version__
        from vllm_std.patches.wrapping import vllm_version

        return {
            "model": self.model, "vllm": vllm_version(), "vllm_std": __version__, "engine": self.engine,
            "sink": self.sink, "recent": self.recent, "max_gamma": max(cell.gamma for cell in self.cells),
            "tokens": self.tokens, "seed": self.seed,
        }  # fmt: skip


def start(plan: Plan, folders: list[Path]):
    """The engine: std with the largest K and gamma of the grid. Raises ValueError for arguments the lab sets itself."""
    for name in OURS:
        if name in plan.engine:
            raise ValueError(f"--engine {name} is set by the lab: leave it out.")
    from vllm import LLM, EngineArgs

    known = {field.name for field in fields(EngineArgs)}
    for name in plan.engine:
        if name not in known:
            raise ValueError(f"--engine {name} is not an argument of vLLM: give names as in vllm.EngineArgs.")
    # Without vLLM's cache of processed videos each prompt carries its own, and any of them can be asked first.
    options: dict[str, Any] = {
        "max_num_seqs": plan.batch,
        "enable_prefix_caching": True,
        "mm_processor_cache_gb": 0,
        "seed": plan.seed,
    }
    if folders:
        options["allowed_local_media_path"] = os.path.commonpath([folder.resolve() for folder in folders])
    largest = max(plan.cells, key=lambda cell: cell.k)
    speculative = {
        "method": "std", "adaptive": False, **largest.options, "selection": "verify", "refresh": 1, "sink": plan.sink,
        "recent": plan.recent, "num_speculative_tokens": max(cell.gamma for cell in plan.cells),
        # At temperature 0 greedy drafts are what probabilistic ones are, without the memory of their logits.
        "draft_sample_method": "probabilistic" if any(cell.temperature for cell in plan.cells) else "greedy",
    }  # fmt: skip
    return LLM(model=plan.model, speculative_config=speculative, **options | plan.engine)


def missing(plan: Plan, prompts: list[Prompt], records: Records) -> set[tuple[str, Cell]]:
    """(prompt id, cell) pairs that are asked for and have no record."""
    return {(prompt.id, cell) for prompt in prompts[: plan.limit] for cell in plan.cells} - records.done()


def run(llm, plan: Plan, prompts: list[Prompt], records: Records, console: Console) -> None:
    """Add a record for each prompt and cell that has none. Raises ValueError for a cell that std cannot do."""
    from vllm_std.patches import lab
    from vllm_std.tools.acceptance.policies import POLICIES

    todo = missing(plan, prompts, records)
    waiting = [prompt for prompt in prompts if any((prompt.id, cell) in todo for cell in plan.cells)]
    columns = BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()
    with lab.attach(llm) as bench, Progress(TextColumn("{task.description}"), *columns, console=console) as progress:
        for cell in plan.cells:  # so that a cell that cannot be is known at once
            bench.switch(cell.gamma, POLICIES[cell.policy], **cell.options)
        records.begin(**plan.settings(), **bench.facts(), prompts=digest(prompts))
        task = progress.add_task("", total=len(todo))
        for first in range(0, len(waiting), plan.batch):
            chunk = waiting[first : first + plan.batch]
            inputs = {prompt.id: lab.render(bench.llm, prompt.messages, prompt.id) for prompt in chunk}
            _warn_of_recomputing(bench, plan, inputs, console)
            for cell in plan.cells:
                asked = [prompt for prompt in chunk if (prompt.id, cell) in todo]
                progress.update(task, description=f"{cell}")
                for record in _answers(bench, plan, cell, asked, inputs) if asked else ():
                    records.add(record)
                progress.advance(task, len(asked))


def _warn_of_recomputing(bench, plan: Plan, inputs: dict[str, Any], console: Console) -> None:
    needed = sum(len(given["prompt_token_ids"]) + plan.tokens for given in inputs.values())
    if needed > bench.cache_tokens():
        console.print(
            f"The KV cache holds {bench.cache_tokens():,} tokens and these {len(inputs)} prompts take {needed:,}: they "
            f"are prefilled again in every cell. A smaller --batch or a larger KV cache avoids that.",
            style="yellow",
        )


def _answers(bench, plan: Plan, cell: Cell, prompts: list[Prompt], inputs: dict[str, Any]) -> list[dict]:
    """One record for each prompt, decoded together in one cell."""
    from vllm import SamplingParams

    from vllm_std.patches import lab
    from vllm_std.tools.acceptance.policies import POLICIES

    seeds = [plan.seed + zlib.crc32(prompt.id.encode()) for prompt in prompts]
    params = [SamplingParams(temperature=cell.temperature, max_tokens=plan.tokens, seed=seed) for seed in seeds]
    bench.switch(cell.gamma, POLICIES[cell.policy], **cell.options)
    begun = time.perf_counter()
    outputs = lab.generate(bench.llm, [inputs[prompt.id] for prompt in prompts], params)
    seconds = time.perf_counter() - begun
    passes = bench.passes()
    return [
        {
            "prompt": prompt.id, "task": prompt.task, **vars(cell), "seed": seed,
            "context": len(output.prompt_token_ids), "cached": output.num_cached_tokens,
            **_answer(prompt, output.outputs[0], passes[output.request_id], cell.gamma),
            "batch": len(prompts), "batch_seconds": round(seconds, 3),
        }
        for prompt, seed, output in zip(prompts, seeds, outputs)
    ]  # fmt: skip


def _answer(prompt: Prompt, answer, passes: list[tuple[int, int]], gamma: int) -> dict:
    right = None if prompt.answer is None else answer.text.strip() == prompt.answer.strip()
    tokens = list(answer.token_ids)
    return {"generated": len(tokens), **count(passes, len(tokens), gamma), "right": right, "tokens": tokens}
