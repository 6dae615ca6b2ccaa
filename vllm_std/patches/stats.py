"""Statistics from the scheduler to the metrics, through what vLLM sends anyway.

The scheduler's statistics reach the front end as a dataclass, `SchedulerStats`, which has no room for those of others.
So it is given a field, once std is asked for; where one process knows of the field and the other does not, msgspec
passes over it. The front end's `StatLoggerManager` is given a logger that reads it.
"""

from dataclasses import field, fields, make_dataclass
from typing import Any

import msgspec
from vllm.v1.engine import core_client
from vllm.v1.metrics.loggers import (
    AggregatedLoggingStatLogger,
    AggregateStatLoggerBase,
    LoggingStatLogger,
    StatLoggerManager,
)
from vllm.v1.metrics.stats import SchedulerStats

from vllm_std.faults import Faults, logger
from vllm_std.metrics import Interval, StdProm
from vllm_std.patches.wrapping import Patch, is_std, wrap

STATS = Patch(
    name="stats",
    replaces=(
        "vllm.v1.metrics.stats.SchedulerStats (a field `std`), StatLoggerManager.__init__ (a logger after vLLM's own), "
        "and, after an engine without std in one process, vllm.v1.engine.core_client.EngineCoreOutputs (a subclass)"
    ),
    why="nothing carries statistics of others to the front end, and a stat logger plugin turns statistics on for all",
    upstream="none",
    remove_when="SchedulerStats carries what a scheduler adds, and a method can bring a stat logger",
)


def install() -> None:
    """Let std's statistics arrive in this process, and be logged by its engines. Safe to call any number of times."""
    add_field()
    if not _arrives():
        # msgspec keeps what it knew of a Struct when the first decoder was made, for an engine that was started before
        # std was asked for; of a subclass it knows nothing yet.
        core_client.EngineCoreOutputs = type("EngineCoreOutputs", (core_client.EngineCoreOutputs,), {})
        if not _arrives():
            logger.warning_once(
                "std: its metrics stay empty, because vLLM's decoder passes over what it does not know."
            )
    wrap(StatLoggerManager, "__init__", _init_manager)


def add_field() -> None:
    """Give SchedulerStats a field `std`, which msgspec encodes and decodes; its own __init__ leaves it None."""
    if "std" in SchedulerStats.__dataclass_fields__:
        return
    kind = dict[str, Any] | None
    donor = make_dataclass("Donor", [("std", kind, field(default=None, init=False))])
    SchedulerStats.std = None
    SchedulerStats.__annotations__["std"] = kind
    (SchedulerStats.__dataclass_fields__["std"],) = fields(donor)
    if "__msgspec_cache__" in vars(SchedulerStats):
        del SchedulerStats.__msgspec_cache__


def attach(stats: SchedulerStats, payload: dict[str, Any]) -> None:
    """Send `payload`, from `StepStats.collect`, along with the statistics of a step."""
    add_field()
    stats.std = payload


def _arrives() -> bool:
    """Whether the field survives between processes, by the types that this one decodes."""
    stats = SchedulerStats()
    stats.std = {}
    sent = msgspec.msgpack.encode(core_client.EngineCoreOutputs(scheduler_stats=stats))
    received = msgspec.msgpack.decode(sent, type=core_client.EngineCoreOutputs)
    return received.scheduler_stats.std is not None


def _init_manager(original, self, vllm_config, *args, **kwargs):
    original(self, vllm_config, *args, **kwargs)
    if not is_std(vllm_config):
        return
    # After vLLM's own, which begin by taking every metric of an earlier engine out of the registry, std's among them.
    self.stat_loggers.append(StdStatLogger(vllm_config, self.engine_indexes, _lines(self.stat_loggers)))


def _lines(loggers: list[AggregateStatLoggerBase]) -> str:
    """How vLLM logs its own periodic lines: "none", "each" engine or all "together"."""
    parts = [part for whole in loggers for part in getattr(whole, "per_engine_stat_loggers", {0: whole}).values()]
    if any(isinstance(part, AggregatedLoggingStatLogger) for part in parts):
        return "together"
    return "each" if any(isinstance(part, LoggingStatLogger) for part in parts) else "none"


class StdStatLogger(AggregateStatLoggerBase):
    """One for all engines of a front end; lines: "none", one for "each" engine, or one of all "together"."""

    def __init__(self, vllm_config, engine_indexes: list[int], lines: str = "each"):
        model, options = vllm_config.model_config, vllm_config.speculative_config
        self.prom = StdProm(model.served_model_name, engine_indexes, options.num_speculative_tokens)
        self.lines, self.faults = lines, Faults()
        self.engine_indexes = engine_indexes
        self.intervals: dict[int, Interval] = {}

    def record(self, scheduler_stats, iteration_stats, mm_cache_stats=None, engine_idx: int = 0) -> None:
        payload = getattr(scheduler_stats, "std", None)
        if payload is None or engine_idx not in self.prom.labels:
            return
        with self.faults.caught("metrics"):
            self.prom.observe(payload, engine_idx)
            if self.lines != "none":
                row = engine_idx if self.lines == "each" else -1
                self.intervals.setdefault(row, Interval()).observe(payload)

    def log(self) -> None:
        intervals, self.intervals = self.intervals, {}
        with self.faults.caught("metrics"):
            for index, interval in sorted(intervals.items()):
                logger.info("%s%s", self._prefix(index), interval)

    def log_engine_initialized(self) -> None:
        pass

    def _prefix(self, index: int) -> str:
        """Whose line it is, in vLLM's words; as vLLM's line of speculative decoding, it has none with one engine."""
        if index == -1:
            return f"{len(self.engine_indexes)} Engines Aggregated: "
        return f"Engine {index:03d}: " if len(self.engine_indexes) > 1 else ""
