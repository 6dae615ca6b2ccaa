"""What timed steps say of a cell: tokens per second, milliseconds of a step by stage, drafts and accepted drafts."""

from collections import defaultdict
from typing import Any

from gpu.stopwatch import Clock, TimedStep

from vllm_std.tools.acceptance.records import count

STAGES = ("draft", "select", "verify", "sample")  # what is left of a step is "rest"
GRAPHS = ("verify", "select", "draft")  # stages that can be full CUDA graphs
SETTLE = 3  # steps left out before the first that counts


def full_batch_steps(steps: list[TimedStep], batch: int, gamma: int | None) -> list[TimedStep]:
    """The longest stretch of steps in which all requests decode, with gamma drafts each (None: with any), less the
    first few."""
    longest: list[TimedStep] = []
    stretch: list[TimedStep] = []
    for step in steps:
        full = step.counts is not None and not step.prefilling and len(step.ids) == batch
        stretch = [*stretch, step] if full and (gamma is None or step.drafts == batch * gamma) else []
        longest = max(longest, stretch, key=len)
    return longest[SETTLE:]


def totals(clock: Clock, steps: list[TimedStep]) -> dict[str, Any]:
    """Of consecutive steps, and ms of a mean step by stage; the last one only marks where they end."""
    end = steps[-1].start
    steps = steps[:-1]
    number, total = len(steps), clock.ms(steps[0].start, end)
    spent = {stage: sum(_spent(clock, step, stage) for step in steps) for stage in (*STAGES, "propose")}
    spent["rest"] = total - sum(spent[stage] for stage in STAGES)
    sampled = sum(int(step.counts[0].sum()) for step in steps)
    passes = sum(len(step.ids) for step in steps)
    return {
        "steps": number, "seconds": total / 1e3, "ms_per_step": total / number,
        "split_ms": {stage: round(ms / number, 4) for stage, ms in spent.items()},
        "passes": passes, "tokens": sampled, "tokens_per_s": sampled / total * 1e3,
        "drafted": sum(step.drafts for step in steps), "accepted": sampled - passes,
        "graphs_per_step": {name: sum(step.graphs[name] for step in steps) / number for name in GRAPHS},
    }  # fmt: skip


def _spent(clock: Clock, step: TimedStep, stage: str) -> float:
    return sum(clock.ms(first, last) for first, last in step.spans.get(stage, ()))


def answer_totals(clock: Clock, steps: list[TimedStep], outputs: list, gamma: int) -> dict[str, Any]:
    """The same of whole answers: from the first step without a prompt to the one that sampled the last token kept.

    Steps that run ahead of the end, and tokens that vLLM trimmed, do not count.
    """
    first = 1 + max(i for i, step in enumerate(steps) if step.counts is not None and step.prefilling)
    lengths = {out.request_id: len(out.outputs[0].token_ids) for out in outputs}
    passes, last, before = _passes_of_requests(steps, first, lengths)
    counts = [count(passes[name], generated, gamma) for name, generated in lengths.items()]
    tokens = sum(lengths.values()) - before
    ms = clock.ms(steps[first].start, steps[last].spans["sample"][-1][1])
    return totals(clock, steps[first : last + 1]) | {
        "seconds": ms / 1e3,
        "tokens": tokens,
        "tokens_per_s": tokens / ms * 1e3,
        "drafted": sum(counted["drafted"] for counted in counts),
        "accepted": sum(counted["accepted"] for counted in counts),
        "passes": sum(_passes_needed(passes[name], generated) for name, generated in lengths.items()),
    }


def _passes_of_requests(steps: list[TimedStep], first: int, lengths: dict[str, int]):
    """{request id: [(tokens sampled, drafts rejected) of each pass]}, the step that sampled the last token kept, and
    tokens sampled before the step `first`."""
    passes, given = defaultdict(list), defaultdict(int)
    last, before = first, 0
    for number, step in enumerate(steps):
        for name, sampled, rejected in zip(step.ids, *(step.counts.tolist() if step.counts is not None else ((), ()))):
            name = name.split("-")[0]  # vLLM adds a random suffix
            if sampled and given[name] < lengths[name]:
                last = max(last, number)
            given[name] += sampled
            before += sampled if number < first else 0
            passes[name].append((sampled, rejected))
    return passes, last, before


def _passes_needed(passes: list[tuple[int, int]], generated: int) -> int:
    """How many passes after the first token an answer took; passes: (tokens sampled, drafts rejected) of each."""
    length, needed = 0, 0
    for sampled, _ in passes:
        needed += 0 < length < generated
        length += sampled
    return needed
