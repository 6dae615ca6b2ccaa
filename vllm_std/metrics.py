"""What std shows of itself: Prometheus metrics beside vLLM's, and a line beside vLLM's periodic ones."""

from collections import Counter
from typing import Any

import prometheus_client

from vllm_std.steps import REASONS


class StdProm:
    """Metrics of all engines of a front end, with vLLM's labels; `observe` takes what `stats.attach` sent."""

    def __init__(self, model_name: str, engine_indexes: list[int], longest: int):
        self.labels = {index: [model_name, str(index)] for index in engine_indexes}
        self.length = self._per_engine(
            prometheus_client.Histogram,
            "draft_length",
            "Tokens drafted for each request, by scheduling step.",
            buckets=list(range(longest + 1)),
        )
        self.speedup = self._gauge("estimated_speedup", "Estimated speed of a step over plain decoding, which is 1.")
        self.kept = self._gauge("kept_share", "Share of the context that draft steps attend to, 0 to 1.")
        self.steps = self._family(
            prometheus_client.Counter, "steps", "Scheduling steps, by why they draft as much as they do.", "reason"
        )
        self.proposals = self._family(
            prometheus_client.Counter,
            "proposals",
            "Tokens proposed for draft steps, by what they came to: true or false.",
            "outcome",
        )
        self.faults = self._family(
            prometheus_client.Counter, "faults", "Exceptions of std that vLLM went on without.", "where"
        )
        self.acceptance = self._family(
            prometheus_client.Gauge,
            "acceptance_rate",
            "Recent acceptance of drafts whose predecessors were accepted, by draft position.",
            "position",
            multiprocess_mode="mostrecent",
        )
        for labels in self.labels.values():  # all at 0 from the start, so that rates are right from the first step
            for reason in REASONS:
                self.steps.labels(*labels, reason)
            for outcome in ("true", "false"):
                self.proposals.labels(*labels, outcome)
            for where in ("round", "scheduler"):
                self.faults.labels(*labels, where)

    def observe(self, payload: dict[str, Any], index: int) -> None:
        labels = self.labels[index]
        for length, steps in payload["lengths"].items():
            for _ in range(steps):
                self.length[index].observe(int(length))
        for reason, steps in payload["reasons"].items():
            self.steps.labels(*labels, reason).inc(steps)
        for where, faults in payload["faults"].items():
            self.faults.labels(*labels, where).inc(faults)
        true, compared = payload["proposals"]
        self.proposals.labels(*labels, "true").inc(true)
        self.proposals.labels(*labels, "false").inc(compared - true)
        for position, rate in enumerate(payload["acceptance"]):
            self.acceptance.labels(*labels, str(position)).set(rate)
        self.speedup[index].set(payload["speedup"])
        if payload["kept"] is not None:
            self.kept[index].set(payload["kept"])

    def _family(self, kind, name: str, documentation: str, *more: str, **options):
        return kind(f"vllm:std_{name}", documentation, labelnames=["model_name", "engine", *more], **options)

    def _per_engine(self, kind, name: str, documentation: str, **options):
        family = self._family(kind, name, documentation, **options)
        return {index: family.labels(*labels) for index, labels in self.labels.items()}

    def _gauge(self, name: str, documentation: str):
        return self._per_engine(prometheus_client.Gauge, name, documentation, multiprocess_mode="mostrecent")


class Interval:
    """Steps from one line of the log to the next."""

    def __init__(self):
        self.lengths, self.off, self.steps = Counter(), Counter(), 0
        self.speedup, self.kept, self.acceptance = [], [], []
        self.proposals = [0, 0]  # true, compared

    def observe(self, payload: dict[str, Any]) -> None:
        self.lengths.update(payload["lengths"])
        self.off.update(payload["off"])
        self.steps = self.lengths.total()
        self.proposals = [total + more for total, more in zip(self.proposals, payload["proposals"])]
        self.speedup.append(payload["speedup"])
        self.acceptance = payload["acceptance"]
        if payload["kept"] is not None:
            self.kept.append(payload["kept"])

    def __str__(self) -> str:
        lengths = sorted((int(length), steps) for length, steps in self.lengths.items())
        mean = sum(length * steps for length, steps in lengths) / self.steps
        parts = [
            f"Mean draft length: {mean:.2f} ({', '.join(f'{x}: {n / self.steps:.1%}' for x, n in lengths)})",
            f"Estimated speedup: {_mean(self.speedup):.2f}x",
        ]
        if self.kept:
            parts.append(f"Kept: {_mean(self.kept):.1%} of context")
        if self.acceptance:
            parts.append(f"Acceptance by position: {', '.join(f'{rate:.2f}' for rate in self.acceptance)}")
        if self.proposals[1]:
            parts.append(f"Proposals true: {self.proposals[0] / self.proposals[1]:.1%}")
        if self.off:
            off = ", ".join(f"{reason} {steps / self.steps:.1%}" for reason, steps in self.off.most_common())
            parts.append(f"Off because: {off}")
        return "std metrics: " + ", ".join(parts)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
