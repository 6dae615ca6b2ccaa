"""Table, summary.json and plots of what bench_gpu.py has measured.

    python scripts/bench_plot.py results.jsonl --out plots

Speedup is decode tokens/s over plain vLLM's in the same run, from medians. With synthetic acceptance a rate that was
not run is computed from the round's measured time, since that does not depend on it: tokens / ms of a round.
"""

import argparse
import json
import statistics
from collections.abc import Iterator
from itertools import product
from pathlib import Path

STAGES = ("draft", "select", "verify", "sample", "rest")
SYNTHETIC = ("shape", "mha")
UNSTEADY = 0.05  # of a round's time, between repeats: more is pointed out
FACTS = ("part", "device", "driver", "vllm", "torch", "triton", "dtype", "block_size")


def load(file: Path) -> list[dict]:
    """The records of a run, which may have been cut off in the middle of a line."""
    if not file.exists():
        return []
    text = file.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        file.write_text(whole)
    return [json.loads(line) for line in whole.splitlines()]


def tokens_a_round(rate: float | None, gamma: int) -> float:
    """Mean tokens of a request in a round, when each draft is accepted with probability `rate` after the one before."""
    return sum((rate or 0.0) ** position for position in range(gamma + 1))


# ------------------------------------------------------------ summary


def summarise(rows: list[dict]) -> list[dict]:
    """One summary for each part and device."""
    rows = [row for row in rows if row["part"] != "sync"]
    keys = list(dict.fromkeys((row["part"], row["device"], row["tiny"]) for row in rows))
    return [_of_one([row for row in rows if (row["part"], row["device"], row["tiny"]) == key]) for key in keys]


def _of_one(rows: list[dict]) -> dict:
    names = ("engine", "batch", "context", "gamma", "rate", "temperature")
    rows = list({tuple(row[name] for name in names): row for row in rows}.values())  # of two, the later one
    first, std = rows[-1], [row for row in rows if row["engine"] == "std"]
    facts = {name: first[name] for name in FACTS}
    facts |= {"top_k": sorted({row["top_k"] for row in std}), "std_sources": sorted({row["source"] for row in std})}
    measured = [row for row in rows if "skipped" not in row]
    make = _synthetic if first["part"] in SYNTHETIC else _real
    return facts | {
        "cpu": first["device"] == "cpu", "async_scheduling": all(row["async_scheduling"] for row in rows),
        "cells": make(measured), "rounds": _rounds(measured),
        "skipped": [{name: row[name] for name in (*names, "skipped")} for row in rows if "skipped" in row],
        "not_cached": [[row[name] for name in names] for row in measured if not row["all_cached"]],
    }  # fmt: skip


def _rounds(rows: list[dict]) -> list[dict]:
    """Where the time of a round goes, ms, medians over the repeats; all measured."""
    return [
        {name: row[name] for name in ("engine", "batch", "context", "gamma", "rate", "temperature")}
        | {"ms_per_round": row["ms_per_round"], "source": "measured"}
        | {"split_ms": {stage: row["split_ms"][stage]["median"] for stage in (*STAGES, "propose")}}
        | {"graphs_per_round": row["repeats"][0]["graphs_per_round"]}
        for row in rows
    ]


def _synthetic(rows: list[dict]) -> list[dict]:
    """Speedups at every rate and draft length whose round has been timed."""
    plain = {(row["batch"], row["context"]): row for row in rows if row["engine"] == "plain"}
    std = {(r["batch"], r["context"], r["gamma"], r["rate"]): r for r in rows if r["engine"] == "std"}
    timed = {}
    for key, row in std.items():
        timed.setdefault(key[:3], row)
    rates = sorted({key[3] for key in std if key[3]})
    found = []
    for (batch, context, gamma), rate in product(timed, rates):
        if (batch, context) in plain:
            real = std.get((batch, context, gamma, rate if gamma else None))
            found.append(_cell(plain[batch, context], real, timed[batch, context, gamma], gamma, rate))
    for cell in found:
        rivals = [o["speedup"] for o in found if all(o[n] == cell[n] for n in ("batch", "context", "rate"))]
        cell["best"] = cell["speedup"] == max(rivals)
    return found


def _cell(plain: dict, real: dict | None, timed: dict, gamma: int, rate: float) -> dict:
    batch, expected = plain["batch"], tokens_a_round(rate, gamma)
    computed = batch * expected / timed["ms_per_round"]["median"] * 1e3
    cell = {
        "batch": batch, "context": plain["context"], "gamma": gamma, "rate": rate, "acceptance": "synthetic",
        "plain_tokens_per_s": plain["tokens_per_s"], "plain_ms_per_step": plain["ms_per_round"]["median"],
        "computed_tokens_per_s": round(computed, 2), "computed_from_rate": timed["rate"],
        "computed_from_ms": timed["ms_per_round"]["median"],
        "expected_tokens_per_request_round": round(expected, 4), "source": "measured" if real else "computed",
    }  # fmt: skip
    if real:
        cell |= {name: real[name] for name in ("tokens_per_s", "ms_per_round", "tokens_per_request_round")}
    rate_of = real["tokens_per_s"]["median"] if real else computed
    return cell | {"speedup": round(rate_of / plain["tokens_per_s"]["median"], 4)}


def _real(rows: list[dict]) -> list[dict]:
    """Speedups of trained models, and how their greedy answers compare with plain vLLM's."""
    plain = {(r["batch"], r["context"], r["temperature"]): r for r in rows if r["engine"] == "plain"}
    found = []
    for row in rows:
        base = plain.get((row["batch"], row["context"], row["temperature"]))
        cell = {name: row[name] for name in ("engine", "batch", "context", "gamma", "temperature", "tokens_per_s")}
        cell |= {name: row[name] for name in ("ms_per_round", "acceptance", "tokens_per_request_round")}
        cell |= {"source": "measured", "acceptance_is": "real", "repeats_equal": row.get("repeats_equal")}
        if base is not None:
            cell["speedup"] = round(row["tokens_per_s"]["median"] / base["tokens_per_s"]["median"], 4)
            if "answers" in row and "answers" in base:
                cell |= parted(base["answers"], row["answers"])
        found.append(cell)
    for cell in found:
        alike = [o for o in found if all(o[n] == cell[n] for n in ("batch", "context", "temperature"))]
        best = max((o.get("speedup", 0) for o in alike if o["engine"] == "std"), default=None)
        cell["best"] = cell["engine"] == "std" and cell.get("speedup") == best
    return found


def parted(plain: list[list[int]], other: list[list[int]]) -> dict:
    """Share of equal answers, and where the others part: the first token that differs, from 0."""
    at = []
    for ours, theirs in zip(plain, other, strict=True):
        if ours != theirs:
            pairs = enumerate(zip(ours, theirs))
            at.append(next((i for i, (a, b) in pairs if a != b), min(len(ours), len(theirs))))
    return {"equal_answers": round(1 - len(at) / len(plain), 4), "parts_at": sorted(at)}


# ------------------------------------------------------------ table


def report(rows: list[dict]) -> str:
    """All of it in text: speedups, the best draft length of each row starred, then the rounds."""
    return "\n".join(line for one in summarise(rows) for line in (*_head(one), *_table(one), *_split(one)))


def _head(summary: dict) -> list[str]:
    top_k = ", ".join(map(str, summary["top_k"])) or "-"
    where = "{part} on {device}, vLLM {vllm}, {dtype}, blocks of {block_size}".format(**summary)
    lines = ["", f"{where}, top_k {top_k}"]
    if summary["cpu"]:
        lines.append("CPU: shows that the bench works; these times are not to be reported.")
    if len(summary["std_sources"]) > 1 or len(summary["top_k"]) > 1:
        lines.append("CAUTION: records of several versions of std, or of several top_k, are mixed here.")
    if not summary["cpu"] and not summary["async_scheduling"]:
        lines.append("CAUTION: async scheduling was off.")
    lines += [f"CAUTION: prompts were not all in the prefix cache: {cell}" for cell in summary["not_cached"]]
    return lines + [line for row in summary["rounds"] if not summary["cpu"] for line in _doubts(row)]


def _doubts(row: dict) -> Iterator[str]:
    """What speaks against a cell of a GPU: repeats that vary, and stages that were not replayed as CUDA graphs."""
    name = "{engine} {batch} x {context:,} gamma={gamma} p={rate} T={temperature}".format(**row)
    ms, graphs = row["ms_per_round"], row["graphs_per_round"]
    if ms["max"] - ms["min"] > UNSTEADY * ms["median"]:
        yield f"CAUTION: ms of a round vary from {ms['min']:.2f} to {ms['max']:.2f} between repeats: {name}"
    wanted = {"verify": 1}
    if row["engine"] == "std" and row["gamma"]:
        wanted |= {"select": 1, "draft": row["gamma"]}
    for stage, count in wanted.items():
        if graphs[stage] < 0.99 * count:
            yield f"CAUTION: {stage} replayed {graphs[stage]:.1f} full CUDA graphs a round, not {count}: {name}"


def _table(summary: dict) -> list[str]:
    if summary["part"] not in SYNTHETIC:
        return _real_table(summary["cells"])
    cells, gammas = summary["cells"], sorted({cell["gamma"] for cell in summary["cells"]})
    if not cells:
        return ["no speedups yet: they need a cell of plain and one of std at the same batch and context"]
    lines = ["speedup over plain vLLM; acceptance is synthetic (p); * best draft length, c computed, else measured"]
    head = f"{'batch':>5} {'context':>8} {'plain tok/s':>12} {'ms':>8} {'p':>5}"
    lines.append(head + "".join(f"{f'g={gamma}':>9}" for gamma in gammas))
    rows = dict.fromkeys((cell["batch"], cell["context"], cell["rate"]) for cell in cells)
    for batch, context, rate in sorted(rows):
        those = {c["gamma"]: c for c in cells if (c["batch"], c["context"], c["rate"]) == (batch, context, rate)}
        plain = next(iter(those.values()))
        line = (
            f"{batch:5} {context:8,} {plain['plain_tokens_per_s']['median']:12,.1f} {plain['plain_ms_per_step']:8.2f}"
        )
        line += f" {rate:5.2f}" + "".join(f"{_shown(those.get(gamma)):>9}" for gamma in gammas)
        lines.append(
            line + ("" if max(c["speedup"] for c in those.values()) > 1 else "   slower at every draft length")
        )
    lines += ["{engine} {batch} x {context:,} gamma={gamma}: {skipped}".format(**one) for one in summary["skipped"]]
    return lines + _consistency(summary)


def _shown(cell: dict | None) -> str:
    if cell is None:
        return "-"
    return ("*" if cell["best"] else "") + f"{cell['speedup']:.2f}" + ("c" if cell["source"] == "computed" else " ")


def _consistency(summary: dict) -> list[str]:
    """How well what is computed agrees with what was measured."""
    real = [cell for cell in summary["cells"] if cell["source"] == "measured" and cell["gamma"]]
    if not real:
        return []
    off = [abs(c["computed_tokens_per_s"] / c["tokens_per_s"]["median"] - 1) for c in real]
    other = [c for c in real if c["rate"] != c["computed_from_rate"]]
    line = f"computed tokens/s differ from measured ones by {max(off):.1%} at most in {len(real)} cells"
    if not other:
        return [line]
    drift = [abs(c["computed_from_ms"] / c["ms_per_round"]["median"] - 1) for c in other]
    return [f"{line}; ms of a round at another p by {max(drift):.1%} in {len(other)}"]


def _real_table(cells: list[dict]) -> list[str]:
    lines = ["real acceptance; * best draft length of std; equal: share of greedy answers equal to plain vLLM's"]
    lines.append(
        f"{'':12} {'batch':>5} {'context':>8} {'T':>4} {'g':>2} {'tok/s':>10} {'speedup':>8} {'ms':>8} {'accept':>7} "
        f"{'tok/round':>9} {'equal':>6} {'parts at (median)':>17}"
    )
    for c in sorted(cells, key=lambda c: (c["temperature"], c["engine"] != "plain", c["engine"], c["gamma"])):
        speedup = ("*" if c["best"] else "") + (f"{c['speedup']:.2f}" if "speedup" in c else "-")
        accepted = "-" if c["acceptance"] is None else f"{c['acceptance']:.3f}"
        equal = f"{c['equal_answers']:.3f}" if "equal_answers" in c else "-"
        at = f"{statistics.median(c['parts_at']):.0f}" if c.get("parts_at") else "-"
        lines.append(
            f"{c['engine']:12} {c['batch']:5} {c['context']:8,} {c['temperature']:4} {c['gamma']:2} "
            f"{c['tokens_per_s']['median']:10,.1f} {speedup:>8} {c['ms_per_round']['median']:8.2f} {accepted:>7} "
            f"{c['tokens_per_request_round']:9.2f} {equal:>6} {at:>17}"
        )
    apart = [c for c in cells if c["repeats_equal"] is False]
    return lines + [f"{c['engine']} gamma={c['gamma']}: its own repeats part from one another" for c in apart]


def _split(summary: dict) -> list[str]:
    lines = ["ms of a round, measured; graphs: full CUDA graphs replayed a round to verify, to select, to draft"]
    lines.append(
        f"{'':12} {'batch':>5} {'context':>8} {'g':>2} {'p':>5} " + "".join(f"{stage:>9}" for stage in STAGES)
        + f"{'round':>9} {'spread':>13} {'graphs':>11}"
    )  # fmt: skip
    rows = {}
    for row in summary["rounds"]:  # the first rate stands for the others: summary.json has them all
        if row["temperature"] == 0:
            rows.setdefault((row["engine"], row["batch"], row["context"], row["gamma"]), row)
    for row in sorted(rows.values(), key=lambda r: (r["context"], r["batch"], r["engine"] != "plain", r["gamma"])):
        whole, graphs = row["ms_per_round"], row["graphs_per_round"]
        rate = f"{row['rate']:.2f}" if row["rate"] else "-"
        lines.append(
            f"{row['engine']:12} {row['batch']:5} {row['context']:8,} {row['gamma']:2} {rate:>5} "
            + "".join(f"{row['split_ms'][stage]:9.3f}" for stage in STAGES)
            + f"{whole['median']:9.3f} {whole['min']:6.2f}-{whole['max']:<6.2f}"
            + "".join(f" {graphs[stage]:3.1f}" for stage in ("verify", "select", "draft"))
        )
    return lines


# ------------------------------------------------------------ plots


def plot(summary: dict, out: Path) -> None:
    if summary["part"] in SYNTHETIC:
        for batch in sorted({cell["batch"] for cell in summary["cells"]}):
            figure = _speedups(summary, batch)
            figure.savefig(out / f"{summary['part']}-speedup-batch{batch}.png", dpi=150)
    _bars(summary).savefig(out / f"{summary['part']}-round.png", dpi=150)


def _figure(width: float, height: float, panels: int, summary: dict, sharey: bool):
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained")
    device = "CPU, not to be reported" if summary["cpu"] else summary["device"]
    figure.suptitle(f"{summary['part']}, {device}, vLLM {summary['vllm']}", fontsize=10)
    return figure, figure.subplots(1, panels, sharey=sharey, squeeze=False)[0]


def _speedups(summary: dict, batch: int):
    """Speedup by context, a line for each draft length, a panel for each rate; hollow where computed."""
    cells = [cell for cell in summary["cells"] if cell["batch"] == batch]
    rates = sorted({cell["rate"] for cell in cells})
    figure, panels = _figure(3.4 * len(rates) + 1, 4, len(rates), summary, sharey=True)
    for panel, rate in zip(panels, rates):
        for color, gamma in enumerate(sorted({cell["gamma"] for cell in cells})):
            those = [c for c in cells if (c["gamma"], c["rate"]) == (gamma, rate)]
            line = sorted((c["context"], c["speedup"], c["source"]) for c in those)
            if line:
                contexts, speedups, sources = zip(*line)
                panel.plot(contexts, speedups, color=f"C{color}", label=f"gamma {gamma}")
                fill = [f"C{color}" if source == "measured" else "white" for source in sources]
                panel.scatter(contexts, speedups, color=fill, edgecolors=f"C{color}", zorder=3)
        panel.axhline(1, color="gray", linewidth=1, linestyle="--")
        panel.set_xscale("log", base=2)
        ticks = sorted({cell["context"] for cell in cells})
        panel.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        panel.set(title=f"batch {batch}, synthetic p = {rate}", xlabel="context, tokens")
        panel.grid(alpha=0.3)
    panels[0].set(ylabel="decode tokens/s over plain vLLM's", ylim=(0, None))
    panels[-1].legend(fontsize=8)
    return figure


def _bars(summary: dict):
    """Where a round's time goes: a bar for each engine and draft length, a panel for each batch and context."""
    rows = {}
    for row in summary["rounds"]:
        rows.setdefault((row["batch"], row["context"]), {}).setdefault((row["engine"], row["gamma"]), row)
    figure, panels = _figure(max(4.0, 2.6 * len(rows)), 4.2, len(rows), summary, sharey=False)
    for panel, (batch, context) in zip(panels, sorted(rows)):
        those = rows[batch, context]
        order = sorted(those, key=lambda key: (key[0] != "plain", *key))
        base = [0.0] * len(order)
        for stage in STAGES:
            heights = [max(0.0, those[key]["split_ms"][stage]) for key in order]
            panel.bar(range(len(order)), heights, bottom=base, label=stage)
            base = [low + height for low, height in zip(base, heights)]
        names = [engine if engine == "plain" else f"{engine} g={gamma}" for engine, gamma in order]
        panel.set_xticks(range(len(order)), names, rotation=70, fontsize=8)
        panel.set_title(f"{batch} x {context:,}", fontsize=9)
    panels[0].set_ylabel("ms of a round, up to g + 1 tokens of each request")
    panels[-1].legend(fontsize=8)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder of summary.json and the plots")
    args = parser.parse_args()
    rows = load(args.results)
    if not rows:
        parser.error(f"there are no records in {args.results}")
    import matplotlib

    matplotlib.use("Agg")
    args.out.mkdir(parents=True, exist_ok=True)
    summaries = summarise(rows)
    sync = [row for row in rows if row["part"] == "sync"]
    (args.out / "summary.json").write_text(json.dumps({"parts": summaries, "sync_check": sync}, indent=1) + "\n")
    for summary in summaries:
        plot(summary, args.out)
    print(report(rows))


if __name__ == "__main__":
    main()
