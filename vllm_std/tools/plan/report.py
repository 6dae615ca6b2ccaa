"""A plan for a terminal, and for programs."""

from dataclasses import asdict, dataclass

from rich.table import Table

from vllm_std.tools.plan.limits import memory, sentences, shares
from vllm_std.tools.plan.predict import Cell, Load, best_of, cells, plain_seconds


@dataclass(frozen=True)
class Plan:
    """assumed: nobody said what share of drafts is accepted."""

    model: str
    load: Load
    assumed: bool
    sees: bool  # has an encoder besides, whose weights are not counted

    @property
    def cells(self) -> list[Cell]:
        return cells(self.load)

    @property
    def best(self) -> Cell | None:
        """The best cell that wins; None too where the batch does not fit, because vLLM would not decode it at once."""
        best = best_of(self.cells)
        return best if best and best.speedup > 1 and memory(self.load)["fits"] else None


def heading(plan: Plan) -> str:
    load = plan.load
    gpus = f"{load.shape.workers} x {load.device.name}" if load.shape.workers > 1 else load.device.name
    requests = f"{load.batch} request{'s' * (load.batch > 1)} of {load.context:,} tokens"
    return f"{plan.model} on {gpus}, {requests}: predicted speed-up over plain decoding"


def table(plan: Plan) -> Table:
    """Draft lengths by K; the best cell is starred, and a dash stands where K is not less than the context."""
    load, best, by = plan.load, plan.best, {(cell.gamma, cell.k): cell for cell in plan.cells}
    shown = Table()
    for name in ("drafts", *(f"K = {k:,}" for k in load.ks)):
        shown.add_column(name, justify="right", no_wrap=True)
    for gamma in load.gammas:
        row = [by.get((gamma, k)) for k in load.ks]
        shown.add_row(str(gamma), *("-" if c is None else f"{'*' * (c == best)}{c.speedup:.2f}x" for c in row))
    return shown


def text(plan: Plan) -> list[str]:
    """The lines below the table."""
    limits = sentences(plan.load, best_of(plan.cells))
    return [verdict(plan), _times(plan), _memory(plan), *limits, *_assumptions(plan)]


def verdict(plan: Plan) -> str:
    best, nearest, load = plan.best, best_of(plan.cells), plan.load
    if nearest is None:
        short = f"a context of {load.context:,} tokens is not longer than K = {min(load.ks):,}"
        return f"no draft length wins here: {short}, so std would draft nothing."
    if not memory(load)["fits"]:
        return "this batch does not fit, so vLLM would decode fewer requests at once than the table is about."
    if best is None:
        least = f"the nearest, {_drafts(nearest)}, comes to {nearest.speedup:.2f}x"
        return f"no draft length wins here: {least}, so std would draft nothing."
    options = f'{{"method": "std", "num_speculative_tokens": {best.gamma}, "top_k": {best.k}}}'
    return f"best: {_drafts(best)}, {best.speedup:.2f}x: --speculative-config '{options}'"


def _drafts(cell: Cell) -> str:
    return f"{cell.gamma} draft{'s' * (cell.gamma > 1)} over K = {cell.k:,}"


def _times(plan: Plan) -> str:
    said = [f"plain step {1e3 * plain_seconds(plan.load):.2f} ms"]
    cell = best_of(plan.cells)
    if cell is not None:
        said += [f"draft step {cell.draft_ms:.2f} ms", f"selection {cell.select_ms:.2f} ms"]
        said += [f"verifying {cell.verify_ms:.2f} ms", f"a round of {_drafts(cell)} {cell.round_ms:.2f} ms"]
    return ", ".join(said) + "."


def _memory(plan: Plan) -> str:
    needs, load = memory(plan.load), plan.load
    kv, weights, gpu, room = (needs[f"{name}_bytes"] / 1e9 for name in ("kv", "weights", "gpu", "usable"))
    said = f"the batch needs {kv:.1f} GB of KV cache (mean keys included) beside {weights:.1f} GB of weights"
    said += " on each GPU" if load.shape.workers > 1 else ""
    of = f"of the {gpu:.1f} GB of {load.device.name} vLLM uses {room:.1f}"
    if needs["fits"]:
        return f"{said}, which fits: {of}."
    most = needs["largest_batch"]
    instead = f"the largest batch that fits is {most}" if most else "not one request of this context fits"
    return f"{said}, which DOES NOT FIT: {of}; {instead}."


def _assumptions(plan: Plan) -> list[str]:
    accepted = plan.load.accepted
    numbers = ", ".join(f"{share:g}" for share in accepted)
    kind = f"each draft is accepted with probability {numbers}"
    if len(accepted) > 1:
        kind = f"{numbers} of the drafts are accepted, by position"
    said = [
        f"{'Assumed' if plan.assumed else 'Given'}: {kind}, whatever K is; in truth a smaller K has fewer accepted.",
        f"Measure it: vllm-std acceptance --model {plan.model} --prompts FILE --k {','.join(map(str, plan.load.ks))}; "
        "then give acceptance_by_position of its summary.json as --acceptance.",
        "Times are computed from data sheets, none is measured here.",
    ]
    return said + ["Weights of the encoder of images or videos are not counted."] * plan.sees


def as_json(plan: Plan) -> dict:
    load, best = plan.load, plan.best
    settings = {"model": plan.model, "gpu": load.device.name, "tensor_parallel_size": load.shape.workers}
    settings |= {"batch": load.batch, "context": load.context, "kv_bytes_per_token": load.shape.kv_bytes}
    return settings | {
        "acceptance": list(load.accepted), "acceptance_is": "assumed" if plan.assumed else "given",
        "source": "predicted", "plain_ms": 1e3 * plain_seconds(load), "cells": [asdict(cell) for cell in plan.cells],
        "best": best and asdict(best), "verdict": verdict(plan), "memory": memory(load),
        "shares": shares(load, best_of(plan.cells)), "limits": sentences(load, best_of(plan.cells)),
    }  # fmt: skip
