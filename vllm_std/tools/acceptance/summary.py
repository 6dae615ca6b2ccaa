"""From records to a summary: each cell's acceptance, in all, by task, by draft position, and against another policy."""

from collections import defaultdict
from dataclasses import replace

import numpy as np

from vllm_std.tools.acceptance.grid import Cell
from vllm_std.tools.acceptance.records import Records
from vllm_std.tools.acceptance.stats import difference, ratio


def summarise(records: Records, against: str | None = None) -> dict:
    """All cells with their counts, shares and intervals. Raises ValueError for a policy that no record has."""
    cells: dict[Cell, dict[str, dict]] = defaultdict(dict)
    # In an order of their own, so that a run that was stopped and resumed gives the same summary.
    for row in sorted(records.rows, key=lambda row: (row["prompt"], row["policy"])):
        cells[Cell.of(row)][row["prompt"]] = row
    policies = sorted({cell.policy for cell in cells})
    if against is not None and against not in policies:
        raise ValueError(f"--against {against} has no records: use one of {', '.join(policies)}.")
    contexts = [row["context"] for row in records.rows]
    shown = sorted(cells, key=lambda cell: (cell.temperature, cell.gamma, cell.refresh, cell.k, cell.policy))
    return {
        "settings": records.header,
        "context": [min(contexts), max(contexts)],
        "greedy": _greedy(cells),
        "cells": [_cell(cell, list(cells[cell].values())) | _against(cell, cells, against) for cell in shown],
    }


def _cell(cell: Cell, rows: list[dict]) -> dict:
    drafted, accepted = (np.sum([row[f"{name}_by_position"] for row in rows], 0) for name in ("drafted", "accepted"))
    rounds = sum(row["rounds"] for row in rows)
    tasks = defaultdict(list)
    for row in rows:
        tasks[row["task"]].append(row)
    tasks.pop(None, None)
    judged = [row["right"] for row in rows if row["right"] is not None]
    return {
        **vars(cell), "prompts": len(rows), "rounds": rounds,
        "drafted": int(drafted.sum()), "accepted": int(accepted.sum()), **_acceptance(rows),
        "mean_acceptance_length": round(1 + int(accepted.sum()) / rounds, 4) if rounds else None,
        **_steps(rows),
        "acceptance_by_position": (accepted / drafted.clip(1)).round(4).tolist(),
        "positions": _positions(rows),
        "right": sum(judged) / len(judged) if judged else None,
        "tasks": {
            task: {"prompts": len(those), **_acceptance(those), **_steps(those)}
            for task, those in sorted(tasks.items())
        },
    }  # fmt: skip


def _positions(rows: list[dict]) -> list[dict]:
    """For each draft position: the share accepted of drafts whose predecessors all were (`acceptance`), and tokens of a
    round that drafts so far (`tokens`, the target's own included), each with its interval."""
    accepted = np.array([row["accepted_by_position"] for row in rows if row["rounds"]])
    rounds = np.array([row["rounds"] for row in rows if row["rounds"]])
    positions, reached, tokens = [], rounds, rounds
    for those in accepted.T if len(accepted) else ():
        tokens = tokens + those
        share, interval = ratio(reached, those) if reached.any() else (None, None)
        mean, around = ratio(rounds, tokens)
        positions.append({"acceptance": share, "interval": interval, "tokens": mean, "tokens_interval": around})
        reached = those
    return positions


def _acceptance(rows: list[dict]) -> dict:
    """Of prompts whose answers were long enough to draft at all."""
    counts = np.array([(row["drafted"], row["accepted"]) for row in rows if row["drafted"]])
    share, interval = ratio(*counts.T) if len(counts) else (None, None)
    return {"acceptance": share, "interval": interval}


def _steps(rows: list[dict]) -> dict:
    """Drafts a draft step, and by number the share of proposals that came true where those before did; empty without
    proposals."""
    counted = [row for row in rows if row.get("draft_steps")]
    if not counted:
        return {}
    steps, drafts = (np.array([row[name] for row in counted]) for name in ("draft_steps", "step_drafts"))
    mean, interval = ratio(steps, drafts)
    true, compared = (np.sum([row[name] for row in counted], 0) for name in ("came_true", "compared"))
    shares = (true / compared.clip(1)).round(4).tolist()
    return {"drafts_a_step": mean, "drafts_a_step_interval": interval, "proposals_true": shares}


def _against(cell: Cell, cells: dict[Cell, dict], policy: str | None) -> dict:
    """The paired difference to the same cell with another policy, over the prompts that both have."""
    base = cells.get(replace(cell, policy=policy)) if policy else None
    if base is None or cell.policy == policy:
        return {}
    pairs = [(row, base[prompt]) for prompt, row in cells[cell].items() if prompt in base]
    pairs = [pair for pair in pairs if all(row["drafted"] for row in pair)]
    if not pairs:
        return {}
    drafted, accepted = (
        np.array([[row[name] for row in pair] for pair in pairs]).T for name in ("drafted", "accepted")
    )
    value, interval = difference(drafted, accepted)
    return {"against": {"policy": policy, "prompts": len(pairs), "difference": value, "interval": interval}}


def _greedy(cells: dict[Cell, dict]) -> dict:
    """How many prompts got other greedy tokens in some cell: none in float32; in bfloat16 near ties may part."""
    answers: dict[str, list[list[int]]] = defaultdict(list)
    for cell, rows in cells.items():
        for prompt, row in rows.items() if cell.temperature == 0 else ():
            answers[prompt].append(row["tokens"])
    compared = {prompt: given for prompt, given in answers.items() if len(given) > 1}
    differ = sorted(prompt for prompt, given in compared.items() if any(tokens != given[0] for tokens in given))
    return {"prompts": len(compared), "differ": differ}
