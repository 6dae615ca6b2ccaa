"""What std shows of itself: from the scheduler's steps to Prometheus, to the periodic line, and to the dashboard."""

import json
import logging
import re
import subprocess
import sys

import pytest
from helpers import ROOT, SIGN_MODEL, greedy, std, token_prompts
from prometheus_client import REGISTRY, generate_latest
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.engine import core_client
from vllm.v1.metrics.loggers import StatLoggerManager
from vllm.v1.metrics.reader import get_metrics_snapshot
from vllm.v1.metrics.stats import SchedulerStats
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from vllm_std.patches import stats
from vllm_std.steps import REASONS, StepStats

DASHBOARD = ROOT / "configs/grafana-vllm-std.json"
ACCEPTANCE = [0.91, 0.88, 0.85]
PAYLOAD = {
    "lengths": {"0": 1, "3": 2}, "reasons": {"cost": 1, "on": 2}, "off": {"cost": 1}, "speedup": 1.31, "kept": 0.031,
    "acceptance": ACCEPTANCE, "faults": {}, "proposals": [3, 12],
}  # fmt: skip


def config(**options):
    """A real VllmConfig; with std, unless `speculative_config` says otherwise."""
    options = {"speculative_config": std(recent=1)} | options
    return EngineArgs(model=str(SIGN_MODEL), max_model_len=1024, block_size=32, **options).create_engine_config()


def scheduler_stats(payload=PAYLOAD) -> SchedulerStats:
    made = SchedulerStats(num_running_reqs=3)
    stats.attach(made, payload)
    return made


@pytest.fixture
def manager(engines):
    """manager(engine_idxs): vLLM's own StatLoggerManager, of a front end that asked for std."""
    engines.close()  # a manager takes the metrics of engines before it out of the registry
    stats.install()
    return lambda engine_idxs=None, **options: StatLoggerManager(config(), engine_idxs, **options)


@pytest.fixture
def lines(monkeypatch, caplog):
    """lines(): what std has logged; vLLM logs periodic lines only where it logs at all."""
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    caplog.set_level(logging.INFO, "vllm")
    return lambda: [record.getMessage() for record in caplog.records if "std metrics" in record.getMessage()]


def shown(name: str, **labels) -> dict | float:
    """What `llm.get_metrics()` tells of a metric: a value, or the buckets of a histogram."""
    (found,) = [
        metric for metric in get_metrics_snapshot() if metric.name == name and labels.items() <= metric.labels.items()
    ]
    return found.buckets if hasattr(found, "buckets") else found.value


@pytest.mark.unit
@pytest.mark.versions
def test_steps_are_counted_until_they_are_handed_over():
    steps = StepStats()
    assert steps.collect([]) is None
    steps.count(0, "idle", speedup=1.0, kept=0.5)
    assert steps.collect([]) == {
        "lengths": {"0": 1}, "reasons": {"idle": 1}, "off": {"idle": 1}, "speedup": 1.0, "kept": None,
        "acceptance": [], "proposals": [0, 0],
    }  # fmt: skip
    steps.count(3, "on", speedup=1.2, kept=0.031)
    steps.count(3, "on", speedup=1.31, kept=0.031)
    steps.count(0, "cost", speedup=1.0, kept=1.0)
    steps.count_proposals([[2, 1], [8, 4]])
    assert steps.collect(ACCEPTANCE) | {"faults": {}} == PAYLOAD | {"speedup": 1.0}
    assert steps.collect(ACCEPTANCE) is None


@pytest.mark.parametrize("payload", [PAYLOAD, PAYLOAD | {"kept": None}, None])
@pytest.mark.unit
@pytest.mark.versions
def test_statistics_reach_another_process(payload):
    stats.install()
    sent = scheduler_stats(payload) if payload else SchedulerStats(num_running_reqs=3)
    wire = MsgpackEncoder().encode(core_client.EngineCoreOutputs(engine_index=1, scheduler_stats=sent))
    received = MsgpackDecoder(core_client.EngineCoreOutputs).decode(wire)
    assert received.scheduler_stats == sent and received.engine_index == 1
    assert received.scheduler_stats.std == payload


@pytest.mark.unit
@pytest.mark.versions
def test_statistics_arrive_after_an_engine_without_std_too():
    """What msgspec keeps of a class cannot be taken back, so this is a process of its own."""
    code = """
from vllm.v1.engine import EngineCoreOutputs, core_client
from vllm.v1.metrics.stats import SchedulerStats
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder
old = MsgpackDecoder(EngineCoreOutputs)
assert not hasattr(SchedulerStats, "std")
from vllm_std.patches import stats
for _ in range(2):
    stats.install()
    fresh = core_client.EngineCoreOutputs
made = SchedulerStats(num_running_reqs=3)
stats.attach(made, {"speedup": 1.5})
wire = MsgpackEncoder().encode(EngineCoreOutputs(scheduler_stats=made))
assert old.decode(wire).scheduler_stats == made and old.decode(wire).scheduler_stats.std is None
received = MsgpackDecoder(fresh).decode(wire)
assert isinstance(received, EngineCoreOutputs) and received.scheduler_stats.std == {"speedup": 1.5}
assert fresh is core_client.EngineCoreOutputs
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "metrics stay empty" not in done.stdout + done.stderr


@pytest.mark.engine
@pytest.mark.versions
def test_metrics_stand_beside_those_of_vllm(manager):
    whole = manager([0, 1])
    for _ in range(2):
        whole.record(scheduler_stats(), None, engine_idx=1)
    whole.record(SchedulerStats(), None, engine_idx=1)
    whole.record(None, None, engine_idx=1)
    mine = {"engine": "1", "model_name": str(SIGN_MODEL)}
    assert shown("vllm:num_requests_running", **mine) == 0
    assert shown("vllm:std_draft_length", **mine) == {"0.0": 2, "1.0": 2, "2.0": 2, "3.0": 6, "+Inf": 6}
    assert {reason: shown("vllm:std_steps", reason=reason, **mine) for reason in REASONS} == {
        **dict.fromkeys(REASONS, 0), "cost": 2, "on": 4,
    }  # fmt: skip
    for position, rate in enumerate(ACCEPTANCE):
        assert shown("vllm:std_acceptance_rate", position=str(position), **mine) == rate
    assert [shown("vllm:std_proposals", outcome=outcome, **mine) for outcome in ("true", "false")] == [6, 18]
    for name, value in (("estimated_speedup", 1.31), ("kept_share", 0.031)):
        assert shown(f"vllm:std_{name}", **mine) == value
        assert shown(f"vllm:std_{name}", engine="0") == 0
    whole.record(scheduler_stats(PAYLOAD | {"kept": None}), None, engine_idx=1)
    assert shown("vllm:std_kept_share", **mine) == 0.031


@pytest.mark.engine
@pytest.mark.versions
def test_engines_follow_each_other_in_one_process(manager):
    manager().record(scheduler_stats(), None)
    for _ in range(2):
        last = manager()
    assert [type(part).__name__ for part in last.stat_loggers].count("StdStatLogger") == 1
    assert shown("vllm:std_draft_length")["+Inf"] == 0
    plain = StatLoggerManager(config(speculative_config=None))
    assert not any("std" in type(part).__name__.lower() for part in plain.stat_loggers)
    assert "vllm:std_" not in generate_latest(REGISTRY).decode()


@pytest.mark.engine
@pytest.mark.versions
def test_a_line_tells_of_the_steps_since_the_last_one(manager, lines):
    whole = manager()
    whole.log()
    assert not lines()
    whole.record(scheduler_stats(), None)
    whole.record(scheduler_stats(PAYLOAD | {"lengths": {"0": 1}, "reasons": {"cost": 1}, "kept": None}), None)
    whole.log()
    assert lines() == [
        "std metrics: Mean draft length: 1.50 (0: 50.0%, 3: 50.0%), Estimated speedup: 1.31x, Kept: 3.1% of context, "
        "Acceptance by position: 0.91, 0.88, 0.85, Proposals true: 25.0%, "
        "Off because: cost 50.0%"
    ]
    whole.log()
    assert len(lines()) == 1


@pytest.mark.parametrize(
    "options,prefixes",
    [
        ({}, ["Engine 000: std", "Engine 001: std"]),
        ({"aggregate_engine_logging": True}, ["2 Engines Aggregated: std"]),
        ({"enable_default_loggers": False}, []),
        ({"client_count": 2}, []),
    ],
)
@pytest.mark.engine
@pytest.mark.versions
def test_lines_are_where_vllm_has_them(manager, lines, options, prefixes):
    whole = manager([0, 1], **options)
    for index in (1, 0):
        whole.record(scheduler_stats(), None, engine_idx=index)
    whole.log()
    assert len(lines()) == len(prefixes)
    assert all(line.startswith(prefix) for line, prefix in zip(lines(), prefixes))
    assert shown("vllm:std_steps", engine="1", reason="on") == 2


@pytest.mark.engine
@pytest.mark.versions
def test_every_metric_of_the_dashboard_exists_and_every_metric_of_std_is_on_it(manager):
    whole = manager()
    whole.record(scheduler_stats(), None)
    exposed = set(re.findall(r"^(vllm:\w+)", generate_latest(REGISTRY).decode(), re.MULTILINE))
    board = json.loads(DASHBOARD.read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    queries += [variable["query"] for variable in board["templating"]["list"] if variable["type"] == "query"]
    asked = set(re.findall(r"vllm:\w+", " ".join(queries)))
    assert asked - exposed == set()
    suffix = re.compile("_(bucket|sum|count|total|created)$")
    assert {suffix.sub("", name) for name in exposed if ":std_" in name} <= {suffix.sub("", name) for name in asked}
    variables = {variable["name"] for variable in board["templating"]["list"]}
    assert set(re.findall(r"\$\{?(\w+)", DASHBOARD.read_text())) - {"__rate_interval", "__all"} <= variables


@pytest.mark.engine
def test_an_engine_shows_what_its_scheduler_decides(engines):
    llm = engines(SIGN_MODEL, std())
    before = {metric.name: metric for metric in llm.get_metrics()}["vllm:std_draft_length"].count
    greedy(llm, token_prompts([200, 300]), max_tokens=24)
    lengths = shown("vllm:std_draft_length")
    assert lengths["+Inf"] > before
    assert lengths["+Inf"] == lengths["3.0"], "no step drafts more than num_speculative_tokens"
    assert sum(shown("vllm:std_steps", reason=reason) for reason in REASONS) == lengths["+Inf"]
    assert 0 < shown("vllm:std_estimated_speedup") < 10
    if lengths["0.0"] < lengths["+Inf"]:
        assert 0 < shown("vllm:std_kept_share") <= 1
    for position in range(3):
        assert 0 <= shown("vllm:std_acceptance_rate", position=str(position)) <= 1
