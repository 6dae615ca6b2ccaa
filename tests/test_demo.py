"""`vllm-std demo`: the bundled model answers about a video, through std as through plain vLLM, with fewer passes."""

import json
import os
import subprocess

import pytest
from helpers import ROOT
from typer.testing import CliRunner

from vllm_std.tools.bench.sides import SIDES, own_servers
from vllm_std.tools.cli import app
from vllm_std.tools.demo import MODEL, clients, run, servers
from vllm_std.tools.demo.ask import Question
from vllm_std.tools.demo.sign_video import SignVideo


def demo(*arguments) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of the command."""
    done = CliRunner().invoke(app, ["demo", *map(str, arguments)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A server has its engine in a process of its own; files go to a cache directory of this test."""
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")


def test_the_bundled_model_is_right_and_takes_fewer_passes():
    """By the script that a clone has for it."""
    asked = ["--json", "--clients", "0"]
    done = subprocess.run([ROOT / "scripts/demo.sh", *asked], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["greedy_equal"] and found["answer_is_right"] and "together" not in found
    assert found["plain_target_passes"] >= found["tokens"] > 100, "one pass a token, as without std"
    assert found["target_passes"] < found["tokens"] / 3
    assert found["acceptance_rate"] == pytest.approx(found["accepted"] / found["drafted"], abs=1e-3)


def test_clients_at_once_are_answered_alike_and_timed(tmp_path, monkeypatch, capsys):
    """With a shorter video and without what makes the servers fast, which takes long to start."""
    signs = SignVideo(scenes=40, seed=3)
    signs.write(tmp_path / "signs.mp4")
    asked = [signs.ask(task, sentences=2) for task in ("range", "list")]
    questions = [Question(tmp_path / "signs.mp4", one["question"], one["answer"]) for one in asked]
    for name in (*servers.ALL_CORES, "OMP_NUM_THREADS"):  # what is set below is undone after the test
        monkeypatch.setenv(name, os.environ.get(name, "1"))
    servers.use_all_cores()
    engine = servers.for_many({"enforce_eager": True, "dtype": "float32", "max_model_len": 4096}, 2, all_frames=False)
    with servers.started(own_servers(MODEL, engine, {"calibrate": False}), SIDES, at_a_time=2) as server:
        said = run.compare_speed(clients.Clients(questions, tokens=200, turns=2), server, False, print)
    printed = capsys.readouterr().out
    assert said["answers_equal"] == 2 and said["answers_right"] == {"plain": 2, "std": 2}
    low, high = said["times_faster_range"]
    assert said["turns"] == 2 and 0 < low <= said["times_faster"] <= high
    assert [line.split()[0] for line in printed.splitlines() if line.endswith("tokens/s")] == [
        "plain", "std", "std", "plain",
    ]  # fmt: skip
    assert "2 of 2 answers are word for word plain vLLM's; 2 of std's are right, 2 of plain vLLM's." in printed


BAD = {
    "a video alone": (["--video", "clip.mp4"], "--video needs --question."),
    "no video": (["--video", "/nowhere/clip.mp4", "--question", "What?"], "/nowhere/clip.mp4 is not a file"),
    "no JSON": (["--engine", "eager"], "--engine eager is not a JSON object"),
    "no policy": (["--policy", "best"], "std would not start here: selection='best'"),
    "no model": (["--model", "/nowhere"], "std would not start here: "),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.unit
def test_what_does_not_work_is_one_sentence(name):
    arguments, says = BAD[name]
    code, stdout, stderr = demo(*arguments)
    ours = [line for line in stderr.splitlines() if line.startswith("vllm-std: ")]
    assert code == 2 and stdout == "" and says in stderr and ours == stderr.splitlines()[-1:]
