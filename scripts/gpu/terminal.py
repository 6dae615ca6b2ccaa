"""The table at the end of a call, short enough for the end of a log; and what speaks against a record."""

from collections.abc import Iterator
from statistics import median

from gpu.parts import PARTS
from gpu.report import (
    compared_cells,
    failures,
    fields,
    kernels_line,
    last,
    never_slower,
    start_line,
    starts,
)

UNSTEADY = 0.05  # of a step's time, between turns: more is pointed out
GRAPHED = 0.97  # of the passes of a step that must be full CUDA graphs: fewer are pointed out
MOST_CAUTIONS = 12  # lines
ERROR_LENGTH = 300  # characters of an error


def terminal_report(rows: list[dict]) -> str:
    cells = compared_cells(rows)
    lines = [*_cell_lines(cells), *map(kernels_line, last(rows, "kernels", "batch", "context"))]
    lines += map(start_line, starts(rows))
    lines += [f"check {row['name']}: {'well' if row['ok'] else 'FAILED'}" for row in last(rows, "check", "name")]
    lines += never_slower(cells)
    skipped = last(rows, "skipped", "part", "side", "batch", "context")
    lines += ["SKIPPED {part} {side} {batch} x {context:,}: {reason}".format(**row) for row in skipped]
    lines += [f"FAILED {row['part']}, {row['where']}: {row['error'][:ERROR_LENGTH]}" for row in failures(rows)]
    return "\n".join(lines + [f"CAUTION {caution}" for caution in list(cautions(cells))[:MOST_CAUTIONS]])


def _cell_lines(cells: list[dict]) -> Iterator[str]:
    part = ""
    for row in cells:
        if row["part"] != part:
            part = row["part"]
            yield ""
            yield f"{part}: {PARTS[part].title}; over plain vLLM, median (lowest to highest)"
        at, side, gamma, rate, temperature, ratio, speed, plain, accepted, passes, split, equal = fields(row)
        yield (
            f"{at:>10} {side:11} g={gamma:8} {rate:9} T={temperature:3} {ratio:22} {speed:>8} tok/s "
            f"plain {plain:>6} ms acc {accepted:5} tok/pass {passes:>4} ms {split}" + f" equal {equal}" * (equal != "-")
        )


def cautions(cells: list[dict]) -> Iterator[str]:
    """What speaks against a record of a GPU."""
    for row in cells:
        if row["device"] == "cpu":
            continue
        name = f"{row['part']} {row['side']} {row['batch']} x {row['context']:,} gamma={row['gamma']} p={row['rate']}"
        ms = [turn["ms_per_step"] for turn in row["turns"]]
        if max(ms) - min(ms) > UNSTEADY * median(ms) and row["gamma"] != "adaptive":
            yield f"{name}: ms of a step vary from {min(ms):.2f} to {max(ms):.2f}"
        if not all(turn["all_cached"] for turn in row["turns"]):
            yield f"{name}: prompts were not all in the prefix cache"
        if not row["async_scheduling"]:
            yield f"{name}: async scheduling was off"
        yield from (f"{name}: {says}" for says in _without_graphs(row))


def _without_graphs(row: dict) -> Iterator[str]:
    wanted = {"verify": 1}
    if row["side"].startswith("std") and type(row["gamma"]) is int and row["gamma"]:
        wanted |= {"select": 1, "draft": row["gamma"]}
    replayed = row["turns"][0]["graphs_per_step"]
    for stage, count in wanted.items():
        if replayed[stage] < GRAPHED * count:
            yield f"{stage} replayed {replayed[stage]:.2f} full CUDA graphs a step, not {count}"
