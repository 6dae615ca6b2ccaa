"""What the controller's choices would cost: traces through a simulated server, against plain and fixed draft lengths.

    python scripts/bench/simulate.py --out docs/records/simulation

SIMULATED TIMES, not measurements of std. A step takes what a cost model says. Of its parts the dense decode step was
measured on one H100 80GB (Qwen2-VL-7B's language shape, bf16, dummy weights); what drafting, selection and verifying
take is derived from it. Acceptance is drawn from what the lab recorded of small models on CPU (docs/records/).

The controller sees a table wrong by up to 15 % in each part, measurements with noise and stalls, and outcomes a step
late. Its first round after plain steps drafts one token with a mask not scored. Every policy meets the same draws.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from vllm_std.control.controller import Choice, Controller  # noqa: E402
from vllm_std.control.cost_model import CostModel  # noqa: E402

LENGTHS = (0, 1, 2, 3, 5)
CAPACITY = 64  # requests at a time
WRONG = 0.15  # most that a part of the controller's table is wrong by
NOISE, STALL = 0.02, 0.003  # of a measured step: its spread, and how often it takes three times as long
UNSCORED = 0.5  # of the usual acceptance, with a mask that has not been scored
SEEDS = 5
TOKENS = [1, 32, 64, 128, 256, 384, 512, 768, 1024, 2048, 4096]
BATCH = [1, 2, 4, 8, 16, 32, 64]


# ------------------------------------------------------------ server


def server(kv_bytes: float = 1.0) -> CostModel:
    """True seconds. kv_bytes: of a cached token, relative to Qwen2-VL-7B's 57,344 bytes."""
    per_kv = 1.70e-8 * kv_bytes  # 6.10 -> 6.77 ms from 2K to 32K at batch 1, 7.43 -> 24.17 ms at batch 32
    # Reading weights hides the arithmetic of a few tokens: 2 * 7.6e9 FLOP each at 600 TFLOP/s.
    dense = [math.hypot(6.05e-3 + 8e-6 * tokens, 2 * 7.6e9 / 600e12 * tokens) for tokens in TOKENS]
    draft = [6.05e-3 + 4e-6 * batch + 1024 * per_kv * batch for batch in BATCH]
    select = [8e-5 + 3e-6 * batch for batch in BATCH]
    return CostModel(TOKENS, dense, BATCH, draft, select, per_kv, 1.6e-9 * kv_bytes, "simulated")


def wrong(true: CostModel, errors: np.ndarray) -> CostModel:
    """A table whose parts are off; errors: [5] factors of base, per_kv, draft, select and select_per_kv."""
    parts = zip((true.dense, true.draft, true.select), errors[[0, 2, 3]])
    dense, draft, select = ([seconds * by for seconds in part] for part, by in parts)
    per_kv, select_per_kv = true.per_kv * errors[1], true.select_per_kv * errors[4]
    return CostModel(TOKENS, dense, BATCH, draft, select, per_kv, select_per_kv, "simulated, wrong")


# ------------------------------------------------------------ traces


@dataclass
class Trace:
    """Requests in the order they arrive. arrival: [n] s; context, tokens: [n]; rates: [n, tokens, positions] chance of
    acceptance after the draft before; draws: [n, tokens] uniform, one for each token, whoever drafts it."""

    costs: CostModel
    arrival: np.ndarray
    context: np.ndarray
    tokens: np.ndarray
    rates: np.ndarray
    draws: np.ndarray


Requests = tuple[np.ndarray, np.ndarray, np.ndarray]  # arrival, context, tokens


def together(n: int, tokens: int, context: int = 32768) -> Requests:
    return np.zeros(n), np.full(n, context), np.full(n, tokens)


def burst(rng: np.random.Generator) -> Requests:
    return np.zeros(64), rng.integers(1024, 2048, 64), rng.integers(100, 300, 64)


def ramp(rng: np.random.Generator) -> Requests:
    return np.cumsum(rng.exponential(0.25, 64)), np.full(64, 32768), rng.integers(300, 700, 64)


def recorded(of: str) -> np.ndarray:
    """[prompts, positions] acceptance of each prompt in the lab, K 5 % of the context, mask scored every round."""
    lines = (ROOT / f"docs/records/acceptance-{of}/records.jsonl").read_text().splitlines()[1:]
    rows = [row for row in map(json.loads, lines) if (row["policy"], row["k"], row["refresh"]) == ("verify", 0.05, 1)]
    accepted = np.array([row["accepted_by_position"] for row in rows], float)
    before = np.concatenate([[[row["drafted_by_position"][0]] for row in rows], accepted[:, :-1]], axis=1)
    return (accepted + 0.5) / (before + 1)  # ten rounds without a failure do not make a rate of 1


def some(of: str, failing: float = 0.0) -> Callable:
    """Recorded rates, a prompt's for each request; failing: share of requests whose drafts are never accepted."""

    def rates(n: int, rng: np.random.Generator) -> np.ndarray:
        rows = recorded(of)
        chosen = rows[rng.integers(len(rows), size=n)]
        chosen[: int(failing * n)] = 0
        return chosen[:, None]

    return rates


def over_time(*values: float) -> Callable:
    """Rates that go through these values, evenly spaced in an answer."""
    return lambda n, rng: np.interp(np.linspace(0, 1, LONG), np.linspace(0, 1, len(values)), values)[None, :, None]


def by_position(*values: float) -> Callable:
    return lambda n, rng: np.array(values)[None, None]


LONG, MANY = 1500, 32
TRACES = {  # requests; acceptance; size of a cached token
    "one long request": (lambda rng: together(1, 3000), some("text"), 1),
    "one long request, KV 8x": (lambda rng: together(1, 5000), some("text"), 8),
    "burst of 64 short requests": (burst, some("text"), 1),
    "ramp to 64 requests and back": (ramp, some("text"), 1),
    "32 requests, text": (lambda rng: together(MANY, LONG), some("text"), 1),
    "32 requests, video": (lambda rng: together(MANY, LONG), some("video"), 1),
    "half of them accept nothing": (lambda rng: together(MANY, LONG), some("text", failing=0.5), 1),
    "first position is the worst": (lambda rng: together(MANY, LONG), by_position(0.5, 0.95, 0.95, 0.95, 0.95), 1),
    "acceptance falls": (lambda rng: together(MANY, LONG), over_time(0.95, 0), 1),
    "acceptance recovers": (lambda rng: together(MANY, LONG), over_time(0, 0, 0.95, 0.95), 1),
    "nothing is accepted": (lambda rng: together(MANY, LONG), over_time(0), 1),
    "nothing is accepted, briefly": (lambda rng: together(MANY, 300), by_position(*[0] * 5), 1),
    "nothing is accepted, KV 8x": (lambda rng: together(1, LONG), over_time(0), 8),
}


def make(name: str, seed: int) -> Trace:
    requests, rates, kv_bytes = TRACES[name]
    rng = np.random.default_rng([seed, *name.encode()])
    arrival, context, tokens = requests(rng)
    shape = len(tokens), int(tokens.max()), max(LENGTHS)
    draws = rng.random((shape[0], shape[1] + shape[2]))
    return Trace(server(kv_bytes), arrival, context, tokens, np.broadcast_to(rates(shape[0], rng), shape), draws)


# ------------------------------------------------------------ simulation


@dataclass
class Run:
    """seconds: to finish the trace; answer: from a request's arrival to its last token, mean; changes: times that
    drafting began or ended; reasons: of the steps."""

    seconds: float = 0.0
    answer: float = 0.0
    changes: int = 0
    lengths: list[int] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)


@dataclass
class Fixed:
    """The same draft length always."""

    length: int

    def choose(self, requests: list[str], kv: int) -> Choice:
        return Choice(self.length, "fixed", 1.0)


class Simulation:
    """A trace served step by step. policy: a Controller, or `Fixed`."""

    def __init__(self, trace: Trace, policy, seed: int = 0):
        self.trace, self.policy, self.run = trace, policy, Run()
        self.rng = np.random.default_rng(seed)
        self.done = np.zeros(len(trace.tokens), int)  # tokens so far
        self.names = [f"request-{n}" for n in range(len(self.done))]
        self.before = -1 if isinstance(policy, Controller) else None  # draft length of the last step
        self.late: list[Callable] = []  # what the last step will tell

    def finish(self) -> Run:
        trace, run = self.trace, self.run
        while (left := self.done < trace.tokens).any():
            rows = np.flatnonzero(left & (trace.arrival <= run.seconds))
            if len(rows):
                self._step(rows)
            else:
                run.seconds = trace.arrival[left].min()
        return run

    def _step(self, rows: np.ndarray) -> None:
        """rows: of the requests that decode."""
        trace, run = self.trace, self.run
        kv = int((trace.context[rows] + self.done[rows]).sum())
        choice = self.policy.choose([self.names[row] for row in rows], kv)
        for tell in self.late:
            tell()
        unscored = choice.length > 0 and self.before == 0
        length = 1 if unscored else choice.length
        accepted = self._accepted(rows, length, UNSCORED if unscored else 1.0)
        seconds = trace.costs.tabulated(length, len(rows), kv)
        self.done[rows] = np.minimum(self.done[rows] + 1 + accepted, trace.tokens[rows])
        run.seconds += seconds
        ended = rows[self.done[rows] == trace.tokens[rows]]
        run.answer += float((run.seconds - trace.arrival[ended]).sum()) / len(trace.tokens)
        run.changes += self.before is not None and self.before >= 0 and (self.before > 0) != (length > 0)
        run.lengths.append(length)
        run.reasons.append(choice.reason)
        if self.before is not None:
            outcomes = zip(rows, accepted.tolist()) if length and not unscored else ()
            self.late = [partial(self.policy.observe, self.names[row], length, n) for row, n in outcomes]
            if length == self.before and not unscored:
                timed = seconds * math.exp(self.rng.normal(0, NOISE)) * (3 if self.rng.random() < STALL else 1)
                self.late.append(partial(self.policy.measured, length, len(rows), kv, timed))
            self.late += [partial(self.policy.forget, self.names[row]) for row in ended]
            self.before = length

    def _accepted(self, rows: np.ndarray, length: int, scale: float) -> np.ndarray:
        """[n] drafts accepted."""
        at = self.done[rows]
        drawn = self.trace.draws[rows[:, None], at[:, None] + np.arange(length)]
        return np.logical_and.accumulate(drawn < scale * self.trace.rates[rows, at, :length], axis=1).sum(axis=1)


def fixed(trace: Trace) -> dict[int, Run]:
    return {length: Simulation(trace, Fixed(length)).finish() for length in LENGTHS}


def adaptive(trace: Trace, seed: int, errors: np.ndarray | None = None) -> Run:
    """With a controller whose table is wrong, by `errors` or by chance."""
    if errors is None:
        errors = 1 + np.random.default_rng(seed).uniform(-WRONG, WRONG, 5)
    return Simulation(trace, Controller(wrong(trace.costs, errors), LENGTHS, CAPACITY), seed).finish()


# ------------------------------------------------------------ results


def summarise(name: str, seeds: int) -> dict:
    """Of one trace; times but plain's are relative to it, means over seeds unless said otherwise."""
    rows = []
    for seed in range(seeds):
        trace = make(name, seed)
        runs, run = fixed(trace), adaptive(trace, seed)
        plain, times = runs[0], {length: one.seconds / runs[0].seconds for length, one in runs.items()}
        ratio, steps = run.seconds / plain.seconds, len(run.lengths)
        rows.append({
            "plain_seconds": plain.seconds, "adaptive": ratio, "over_best_fixed": ratio / min(times.values()),
            "best_fixed": min(times.values()), "answer": run.answer / plain.answer, "changes": run.changes,
            "steps": steps, "probes": run.reasons.count("explore"), **{f"fixed_{k}": v for k, v in times.items()},
            **{f"share_of_steps_at_{k}": run.lengths.count(k) / steps for k in LENGTHS},
        })  # fmt: skip
    mean = {key: round(float(np.mean([row[key] for row in rows])), 4) for key in rows[0]}
    worst = {f"{key}_worst": round(max(row[key] for row in rows), 4) for key in ("adaptive", "over_best_fixed")}
    return {"trace": name, **mean, **worst, "adaptive_by_seed": [round(row["adaptive"], 4) for row in rows]}


def plot(traces: list[dict], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure((9, 0.4 * len(traces) + 1.8), layout="constrained")
    axes, places = figure.subplots(), range(len(traces))
    for length, marker in zip(LENGTHS[1:], "ov^s"):
        times = [trace[f"fixed_{length}"] for trace in traces]
        axes.plot(times, places, marker, color="0.6", markerfacecolor="none", label=f"always {length}")
    axes.plot([trace["adaptive"] for trace in traces], places, "D", color="C0", label="chosen in each step")
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xticks(ticks := (0.5, 0.7, 1, 1.5, 2, 3, 4, 6), [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_yticks(places, [trace["trace"] for trace in traces])
    axes.invert_yaxis()
    axes.set_xlabel("time to finish, relative to plain decoding (simulated; less is faster)")
    axes.grid(alpha=0.3)
    axes.legend(title="drafted tokens", fontsize="small")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs/records/simulation")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    traces = []
    for name in TRACES:
        traces.append(summarise(name, options.seeds))
        print("{trace:30} chosen {adaptive:.3f} (worst {adaptive_worst:.3f}), best fixed {best_fixed:.3f}, "
              "answer {answer:.3f}, changes {changes:.1f}".format(**traces[-1]), flush=True)  # fmt: skip
    about = " ".join(__doc__.split("\n\n")[2].split())
    results = {"about": about, "lengths": LENGTHS, "seeds": options.seeds, "wrong": WRONG, "traces": traces}
    (options.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    plot(traces, options.out / "simulation.png")


if __name__ == "__main__":
    main()
