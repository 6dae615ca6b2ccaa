"""`scripts/gpu/day.sh` on tiny models: what it records, what it leaves out the second time, what a failure stops."""

import os
import subprocess
import sys

import pytest
from helpers import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
from gpu import page  # noqa: E402
from gpu.parts import PARTS  # noqa: E402
from gpu.records import load  # noqa: E402
from gpu.report import STAGES, compared_cells  # noqa: E402
from gpu.terminal import terminal_report  # noqa: E402

FACTS = {"device", "driver", "vllm", "torch", "triton", "source", "commit", "call", "tiny"}


def day(*words) -> subprocess.CompletedProcess:
    command = [ROOT / "scripts/gpu/day.sh", *words]
    env = os.environ | {"PYTHON": sys.executable}
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, env=env, timeout=600)


def test_a_part_is_measured_once_and_the_table_comes_last(tmp_path):
    done = day("mha", "--tiny", "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = load(tmp_path / "records.jsonl")
    assert all(FACTS <= set(row) for row in rows)
    assert [row["side"] for row in rows if row["what"] == "start"] == ["plain", "std", "plain"]
    found = compared_cells(rows)
    part = PARTS["mha"].shrunk()
    assert len(found) == len(part.cells("std")) and all(len(row["ratios"]) == part.turns for row in found)
    assert all(row["ratios"][0] > 0 and row["turns"][0]["split_ms"]["verify"] > 0 for row in found)
    assert "over plain vLLM, median" in done.stdout and len(done.stdout) < 12_000
    again = day("mha", "--tiny", "--out", tmp_path)
    assert again.returncode == 0 and load(tmp_path / "records.jsonl") == rows


def test_a_failing_part_is_recorded_and_stops_no_other(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    done = day("smollm2", "kernels", "--tiny", "--text-model", tmp_path, "--out", tmp_path / "out")
    assert done.returncode == 1 and "FAILED smollm2, smollm2: SideError: plain" in done.stdout
    rows = load(tmp_path / "out/records.jsonl")
    assert [row["part"] for row in rows if row["what"] == "failure"] == ["smollm2"]
    kernels = [row for row in rows if row["what"] == "kernels"]
    assert len(kernels) == 2 and all(0 < row["split_ms"]["score_summaries"] < row["ms"] for row in kernels)


BAD = {
    "a part": (["9b"], "there is no part 9b: use check, 7b"),
    "no time": (["7b", "--minutes", "0"], "--minutes 0 leaves no time"),
    "memory": (["7b", "--memory", "94"], "--memory 94 is not a share"),
    "no model": (["smollm2", "--text-model", "/nowhere"], "--text-model /nowhere has no config.json"),
    "no runtime": (["7b", "--runtime", "/nowhere"], "--runtime /nowhere holds no .tar.xz archive"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.unit
def test_what_does_not_work_is_said_with_its_option(name, tmp_path):
    words, says = BAD[name]
    done = day(*words, "--out", tmp_path)
    assert done.returncode == 2 and says in done.stderr


def record(side: str, visit: int, speeds: list[float], gamma=0, rate=None, **changed) -> dict:
    split = {
        "split_ms": dict.fromkeys(STAGES, 1.0),
        "graphs_per_step": {"verify": 1, "select": 1, "draft": 5},
    }
    split |= {"drafted": 50, "accepted": 40, "passes": 20, "ms_per_step": 9.0, "all_cached": True}
    row = dict(what="cell", part="7b", side=side, batch=32, context=32000, gamma=gamma, rate=rate, temperature=0.0)
    row |= dict(model="qwen2-7b", options=PARTS["7b"].sides.get(side), visit=visit, async_scheduling=True)
    row |= dict(
        device="H100", driver="580", vllm="0.33.0", torch="2.11", source="s", commit="c", tiny=False, call="one"
    )
    return row | {"turns": [split | {"tokens_per_s": speed} for speed in speeds]} | changed


@pytest.mark.unit
def test_a_ratio_is_that_of_plain_turns_around_it_in_the_same_call():
    before, after = record("plain", 1, [100, 100]), record("plain", 3, [50, 200])
    other = record("plain", 1, [1, 1], call="another")
    row = record("std", 2, [150, 200, 100, 100], gamma=5, rate=0.9)
    (found,) = compared_cells([before, row, other, after])
    assert found["ratios"] == [1.5, 2.0, 2.0, 0.5]
    beside = record("plain", 2, [300, 400, 200, 200])  # engines that took turns
    (found,) = compared_cells([before, row, beside, after])
    assert found["ratios"] == [0.5] * 4


@pytest.mark.unit
def test_the_page_says_what_was_measured_and_nothing_of_a_cpu():
    rows = [record("plain", 1, [100] * 4), record("std", 2, [150, 140, 160, 150], gamma=5, rate=0.9)]
    assert page.section([row | {"device": "cpu"} for row in rows]) == page.NOTHING
    rows += [record("std", 3, [1] * 4) | {"what": "failure", "where": "ngram", "error": "out of memory"}]
    said = page.section(rows)
    assert (
        "| 32 x 32K | std, K 1,024 | 5 | set, 0.9 | 0 | 1.50x (1.40 to 1.60) | 150 | 9.00 | 0.800 | 3.00 | 9.00: 1.00,"
        in said
    )
    assert "H100, driver 580, vLLM 0.33.0" in said and "- Failed: 7b, ngram" in said
    slow = [record(side, 1, [speed], part="never-slower") for side, speed in (("plain", 100), ("std", 97))]
    assert "does NOT hold: least 0.970" in terminal_report(slow)


@pytest.mark.unit
def test_the_page_is_that_of_the_records():
    command = [sys.executable, "-m", "gpu.page", "--check"]
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'scripts'}"}
    assert subprocess.run(command, capture_output=True, env=env).returncode == 0
