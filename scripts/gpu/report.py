"""What records say: ratios to plain vLLM, and the table at the end of a call.

A ratio is decode tokens/s over plain vLLM's, which ran without the plugin in the same call: turn by turn where both
took turns, else over the plain turns before and after it. Median, lowest and highest.
"""

from collections.abc import Iterator
from itertools import cycle
from statistics import median

from gpu.parts import PARTS
from gpu.records import SETTINGS

from vllm_std.tools.bench.ratio import ratio_of

STAGES = ("draft", "select", "verify", "sample", "rest")
NEVER_SLOWER = 0.98  # of plain vLLM's speed: std is "never slower" where it has at least so much
HEAD = (
    "batch x context", "side", "gamma", "acceptance", "T", "over plain", "tokens/s", "plain step, ms", "accepted",
    "tokens a pass", "ms of a step: draft, select, verify, sample, rest", "answers equal to plain's",
)  # fmt: skip


def compared_cells(rows: list[dict]) -> list[dict]:
    """The last record of each cell that is not plain, in the order of the parts.

    ratios: tokens/s of each turn, over that of plain vLLM's turn of the same place; plain: those turns of plain vLLM.
    """
    names = ("part", "side", "batch", "context", "gamma", "rate", "temperature", *SETTINGS)
    cells = [row for row in rows if row["what"] == "cell"]
    newest = {tuple(row[name] for name in names): row for row in cells if row["side"] != "plain"}
    order = list(PARTS)
    return [_compared(row, cells) for row in sorted(newest.values(), key=lambda row: order.index(row["part"]))]


def _compared(row: dict, cells: list[dict]) -> dict:
    shared = ("call", "part", "batch", "context", "temperature")
    plain = [one for one in cells if one["side"] == "plain" and all(one[name] == row[name] for name in shared)]
    beside = [one for one in plain if one["visit"] == row["visit"]]
    if not beside:
        earlier = [one for one in plain if one["visit"] < row["visit"]][-1:]
        beside = earlier + [one for one in plain if one["visit"] > row["visit"]][:1]
    turns = [turn for one in beside for turn in one["turns"]]
    pairs = zip(row["turns"], cycle(turns)) if turns else ()
    return row | {"ratios": [ours["tokens_per_s"] / its["tokens_per_s"] for ours, its in pairs], "plain": turns}


def fields(row: dict) -> list[str]:
    """Of a compared cell, as HEAD names them."""
    turns, options, plain = row["turns"], row["options"], row["plain"]
    drafted, accepted, passes = (sum(turn[name] for turn in turns) for name in ("drafted", "accepted", "passes"))
    rate = "real" if row["rate"] is None else f"set, {row['rate']}"
    split = ", ".join(f"{median(turn['split_ms'][stage] for turn in turns):.2f}" for stage in STAGES)
    equal = "-"
    if "equal_answers" in turns[0] and row["temperature"] == 0:
        equal = f"{turns[0]['equal_answers']} of {turns[0]['answers_in_all']}"
    return [
        f"{row['batch']} x {row['context'] / 1000:.3g}K",
        f"std, K {options.get('top_k', 1024):,}" if options["method"] == "std" else row["side"],
        str(row["gamma"]),
        "-" if row["gamma"] == 0 else rate,
        f"{row['temperature']:g}",
        str(ratio_of(row["ratios"])) if row["ratios"] else "no plain turn",
        f"{_middle(turns, 'tokens_per_s'):,.0f}",
        f"{_middle(plain, 'ms_per_step'):.2f}" if plain else "-",
        f"{accepted / drafted:.3f}" if drafted else "none drafted",
        f"{1 + accepted / passes:.2f}",
        f"{_middle(turns, 'ms_per_step'):.2f}: {split}",
        equal,
    ]


def _middle(turns: list[dict], name: str) -> float:
    return median(turn[name] for turn in turns)


def last(rows: list[dict], what: str, *names: str) -> list[dict]:
    """Of records that say the same of `names`, the last."""
    return list({tuple(row[name] for name in names): row for row in rows if row["what"] == what}.values())


def starts(rows: list[dict]) -> list[dict]:
    return last([row for row in rows if row["part"] == "start"], "start", "side", "cache")


def failures(rows: list[dict]) -> list[dict]:
    """Of the last call of each part."""
    calls = {row["part"]: row["call"] for row in rows}
    return [row for row in rows if row["what"] == "failure" and row["call"] == calls[row["part"]]]


def kernels_line(row: dict) -> str:
    split = ", ".join(f"{name} {ms:.3f}" for name, ms in row["split_ms"].items())
    goal = f"goal {row['goal_ms']:.2f}: {'met' if row['met'] else 'missed'}"
    return f"selection {row['batch']} x {row['context']:,}: {row['ms']:.3f} ms ({goal}); {split}"


def start_line(row: dict) -> str:
    facts = "{side}, {cache} cache: {seconds[to_start]} s, {seconds[from_weights_to_ready]} s of it after loading"
    facts = (facts + "; {kv_blocks:,} KV blocks of {block_size}").format(**row)
    return f"start {facts}, {sum(row['full_graphs'].values())} full CUDA graphs"


def never_slower(cells: list[dict]) -> Iterator[str]:
    """A sentence, where that part was measured."""
    ratios = [median(row["ratios"]) for row in cells if row["part"] == "never-slower" and row["ratios"]]
    if ratios:
        verdict = "holds" if min(ratios) >= NEVER_SLOWER else "does NOT hold"
        least = f"least {min(ratios):.3f} of {len(ratios)} cells"
        yield f"never slower (at least {NEVER_SLOWER} of plain vLLM) {verdict}: {least}"
