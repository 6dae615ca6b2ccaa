"""`vllm-std demo`: the bundled model answers about a video, through std as through plain vLLM, with fewer passes."""

import json
import subprocess

import pytest
from conftest import ROOT
from typer.testing import CliRunner

from vllm_std.cli import app


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
    done = subprocess.run([ROOT / "scripts/demo.sh", "--json"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["greedy_equal"] and found["answer_is_right"]
    assert found["plain_target_passes"] >= found["tokens"] > 100, "one pass a token, as without std"
    assert found["target_passes"] < found["tokens"] / 3
    assert found["acceptance_rate"] == pytest.approx(found["accepted"] / found["drafted"], abs=1e-3)


BAD = {
    "a video alone": (["--video", "clip.mp4"], "--video needs --question."),
    "no video": (["--video", "/nowhere/clip.mp4", "--question", "What?"], "/nowhere/clip.mp4 is not a file"),
    "no JSON": (["--engine", "eager"], "--engine eager is not a JSON object"),
    "no policy": (["--policy", "best"], "std would not start here: selection='best'"),
    "no model": (["--model", "/nowhere"], "std would not start here: "),
}


@pytest.mark.fast
@pytest.mark.parametrize("name", BAD)
def test_what_does_not_work_is_one_sentence(name):
    arguments, says = BAD[name]
    code, stdout, stderr = demo(*arguments)
    ours = [line for line in stderr.splitlines() if line.startswith("vllm-std: ")]
    assert code == 2 and stdout == "" and says in stderr and ours == stderr.splitlines()[-1:]
