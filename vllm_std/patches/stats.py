"""The statistics' side of the seam ledger: from the scheduler to the metrics, through what vLLM sends anyway.

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
from vllm.v1.metrics.utils import create_metric_per_engine

from vllm_std.faults import logger
from vllm_std.patches.wrapping import is_std, wrap

__all__ = [
    "AggregateStatLoggerBase", "add_field", "attach", "create_metric_per_engine", "install",
]  # fmt: skip


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
    """Send `payload`, from `StepStats.take`, along with the statistics of a step."""
    add_field()
    stats.std = payload


def _arrives() -> bool:
    """Whether the field survives between processes, by the types that this one decodes."""
    stats = SchedulerStats()
    stats.std = {}
    sent = msgspec.msgpack.encode(core_client.EngineCoreOutputs(scheduler_stats=stats))
    received = msgspec.msgpack.decode(sent, type=core_client.EngineCoreOutputs)
    return received.scheduler_stats.std is not None


def _init_manager(plain, self, vllm_config, *args, **kwargs):
    plain(self, vllm_config, *args, **kwargs)
    if not is_std(vllm_config):
        return
    from vllm_std.metrics import StdStatLogger

    # After vLLM's own, which begin by taking every metric of an earlier engine out of the registry, std's among them.
    self.stat_loggers.append(StdStatLogger(vllm_config, self.engine_indexes, _lines(self.stat_loggers)))


def _lines(loggers: list[AggregateStatLoggerBase]) -> str:
    """How vLLM logs its own periodic lines: "none", "each" engine or all "together"."""
    parts = [part for whole in loggers for part in getattr(whole, "per_engine_stat_loggers", {0: whole}).values()]
    if any(isinstance(part, AggregatedLoggingStatLogger) for part in parts):
        return "together"
    return "each" if any(isinstance(part, LoggingStatLogger) for part in parts) else "none"
