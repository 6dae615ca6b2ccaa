"""What records say: ratios to plain vLLM, and the table at the end of a call.

A ratio is decode tokens/s over plain vLLM's, which ran without the plugin in the same call: turn by turn where both
took turns, else over the plain turns before and after it. Median, lowest and highest.
"""

from collections.abc import Iterator
from itertools import cycle
from statistics import median

from gpu_parts import PARTS
from gpu_records import SETTINGS

STAGES = ("draft", "select", "verify", "sample", "rest")
UNSTEADY = 0.05  # of a round's time, between turns: more is pointed out
NEVER = 0.98  # of plain vLLM's speed: std is "never slower" where it has at least so much
HEAD = (
    "batch x context", "side", "gamma", "acceptance", "T", "over plain", "tokens/s", "plain step, ms", "accepted",
    "tokens a pass", "ms of a round: draft, select, verify, sample, rest", "answers equal to plain's",
)  # fmt: skip


# ------------------------------------------------------------ ratios


def cells(rows: list[dict]) -> list[dict]:
    """The last record of each cell that is not plain, in the order of the parts.

    ratios: tokens/s of each turn, over that of plain vLLM's turn of the same place; plain: those turns of plain vLLM.
    """
    names = ("part", "side", "batch", "context", "gamma", "rate", "temperature", *SETTINGS)
    measured = [row for row in rows if row["what"] == "cell"]
    found = {tuple(row[name] for name in names): row for row in measured if row["side"] != "plain"}
    order = list(PARTS)
    return [divided(row, measured) for row in sorted(found.values(), key=lambda row: order.index(row["part"]))]


def divided(row: dict, rows: list[dict]) -> dict:
    shared = ("call", "part", "batch", "context", "temperature")
    plain = [one for one in rows if one["side"] == "plain" and all(one[name] == row[name] for name in shared)]
    beside = [one for one in plain if one["visit"] == row["visit"]]
    if not beside:
        earlier = [one for one in plain if one["visit"] < row["visit"]][-1:]
        beside = earlier + [one for one in plain if one["visit"] > row["visit"]][:1]
    turns = [turn for one in beside for turn in one["turns"]]
    pairs = zip(row["turns"], cycle(turns)) if turns else ()
    return row | {"ratios": [ours["tokens_per_s"] / its["tokens_per_s"] for ours, its in pairs], "plain": turns}


def spread(values: list[float]) -> str:
    return f"{median(values):.2f}x ({min(values):.2f} to {max(values):.2f})" if values else "no plain turn"


# ------------------------------------------------------------ one line of a table


def middle(turns: list[dict], name: str) -> float:
    return median(turn[name] for turn in turns)


def fields(row: dict) -> list[str]:
    """As HEAD names them."""
    turns, options = row["turns"], row["options"]
    drafted, accepted, passes = (sum(turn[name] for turn in turns) for name in ("drafted", "accepted", "passes"))
    side = f"std, K {options.get('top_k', 1024):,}" if options["method"] == "std" else row["side"]
    rate = "real" if row["rate"] is None else f"set, {row['rate']}"
    split = ", ".join(f"{median(turn['split_ms'][stage] for turn in turns):.2f}" for stage in STAGES)
    plain = f"{middle(row['plain'], 'ms_per_round'):.2f}" if row["plain"] else "-"
    equal = f"{turns[0]['equal_answers']} of {turns[0]['answers_in_all']}" if "equal_answers" in turns[0] else "-"
    return [
        f"{row['batch']} x {row['context'] / 1000:.3g}K", side, str(row["gamma"]), "-" if row["gamma"] == 0 else rate,
        f"{row['temperature']:g}", spread(row["ratios"]), f"{middle(turns, 'tokens_per_s'):,.0f}", plain,
        f"{accepted / drafted:.3f}" if drafted else "none drafted", f"{1 + accepted / passes:.2f}",
        f"{middle(turns, 'ms_per_round'):.2f}: {split}", equal if row["temperature"] == 0 else "-",
    ]  # fmt: skip


def doubts(rows: list[dict]) -> Iterator[str]:
    """What speaks against a record of a GPU."""
    for row in rows:
        if row["device"] == "cpu":
            continue
        name = f"{row['part']} {row['side']} {row['batch']} x {row['context']:,} gamma={row['gamma']} p={row['rate']}"
        ms = [turn["ms_per_round"] for turn in row["turns"]]
        if max(ms) - min(ms) > UNSTEADY * median(ms) and row["gamma"] != "adaptive":
            yield f"{name}: ms of a round vary from {min(ms):.2f} to {max(ms):.2f}"
        if not all(turn["all_cached"] for turn in row["turns"]):
            yield f"{name}: prompts were not all in the prefix cache"
        if not row["async_scheduling"]:
            yield f"{name}: async scheduling was off"
        yield from (f"{name}: {what}" for what in without_graphs(row))


def without_graphs(row: dict) -> Iterator[str]:
    graphs, wanted = row["turns"][0]["graphs_per_round"], {"verify": 1}
    if row["side"].startswith("std") and type(row["gamma"]) is int and row["gamma"]:
        wanted |= {"select": 1, "draft": row["gamma"]}
    for stage, count in wanted.items():
        if graphs[stage] < 0.97 * count:
            yield f"{stage} replayed {graphs[stage]:.2f} full CUDA graphs a round, not {count}"


# ------------------------------------------------------------ the table of a terminal


def report(rows: list[dict]) -> str:
    """Short enough for the end of a log."""
    lines, part = [], ""
    for row in cells(rows):
        if row["part"] != part:
            part = row["part"]
            lines += ["", f"{part}: {PARTS[part].title}; over plain vLLM, median (lowest to highest)"]
        at, side, gamma, rate, warmth, ratio, speed, plain, accepted, passes, split, equal = fields(row)
        lines.append(
            f"{at:>10} {side:11} g={gamma:8} {rate:9} T={warmth:3} {ratio:22} {speed:>8} tok/s plain {plain:>6} ms "
            f"acc {accepted:5} tok/pass {passes:>4} ms {split}" + f" equal {equal}" * (equal != "-")
        )
    lines += [kernels_line(row) for row in last(rows, "kernels", "batch", "context")]
    lines += [start_line(row) for row in starts(rows)]
    lines += [f"check {row['name']}: {'well' if row['ok'] else 'FAILED'}" for row in last(rows, "check", "name")]
    lines += never_slower(cells(rows))
    for row in last(rows, "skipped", "part", "side", "batch", "context"):
        lines.append("SKIPPED {part} {side} {batch} x {context:,}: {reason}".format(**row))
    lines += [f"FAILED {row['part']}, {row['where']}: {row['error'][:300]}" for row in failures(rows)]
    return "\n".join(lines + [f"CAUTION {doubt}" for doubt in list(doubts(cells(rows)))[:12]])


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
    met = "met" if row["met"] else "missed"
    return (
        f"selection {row['batch']} x {row['context']:,}: {row['ms']:.3f} ms (goal {row['goal_ms']:.2f}: {met}); {split}"
    )


def start_line(row: dict) -> str:
    facts = "{side}, {cache} cache: {seconds[to_start]} s, {seconds[from_weights_to_ready]} s of it after loading"
    facts = (facts + "; {kv_blocks:,} KV blocks of {block_size}").format(**row)
    return f"start {facts}, {sum(row['full_graphs'].values())} full CUDA graphs"


def never_slower(found: list[dict]) -> list[str]:
    ratios = [median(row["ratios"]) for row in found if row["part"] == "never-slower" and row["ratios"]]
    if not ratios:
        return []
    verdict = "holds" if min(ratios) >= NEVER else "does NOT hold"
    return [f"never slower (at least {NEVER} of plain vLLM) {verdict}: least {min(ratios):.3f} of {len(ratios)} cells"]
