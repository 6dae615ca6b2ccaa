"""scripts/examples/batch.py runs as it stands, on a real engine with the bundled video model."""

import json
import subprocess
import sys

import pytest
import typer
from helpers import ROOT, SIGN_MODEL
from typer.testing import CliRunner

from vllm_std.tools.demo.sign_video import SignVideo

sys.path.insert(0, str(ROOT / "scripts/examples"))
import batch  # noqa: E402

ENGINE = {"dtype": "float32", "block_size": 32, "enforce_eager": True, "max_model_len": 2048, "seed": 0}
ENGINE |= {"kv_cache_memory_bytes": 2**28, "max_num_batched_tokens": 2048, "skip_mm_profiling": True}
ENGINE |= {"speculative_config": {"method": "std", "adaptive": False, "top_k": 192}}


def run(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "scripts/examples/batch.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A folder of three videos, and what is right to answer about each to the one question."""
    folder, answers, asked = tmp_path_factory.mktemp("videos"), {}, None
    for number in range(3):
        video = SignVideo(scenes=20, seed=7)
        video.write(folder / f"{number}.mp4")
        asked = video.ask("list", sentences=2)
        answers[f"{number}.mp4"] = asked["answer"]
    return folder, asked["question"], answers


@pytest.mark.engine
def test_a_batch_without_a_readable_video_ends(engines, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    out = tmp_path / "answers.jsonl"
    engines.close()
    app = typer.Typer()
    app.command()(batch.main)
    arguments = [tmp_path, "--model", SIGN_MODEL, "--out", out, "--engine", json.dumps(ENGINE)]
    done = CliRunner().invoke(app, list(map(str, arguments)))
    engines.close()
    assert done.exit_code == 1 and "1 could not be read" in done.stderr, done.stderr[-3000:]
    assert [row["video"] for row in map(json.loads, out.read_text().splitlines())] == ["broken.mp4"]


def test_a_batch_goes_on_where_it_was_interrupted(videos, tmp_path):
    """An answer is kept, a line cut short is asked again, and a file that is no video stops nothing."""
    folder, question, answers = videos
    out, before = tmp_path / "answers.jsonl", {"video": "0.mp4", "answer": "of an earlier run"}
    out.write_text(json.dumps(before) + "\n" + '{"video": "1.mp4", "ans')
    (folder / "broken.mp4").write_bytes(b"not a video")
    arguments = [folder, "--model", SIGN_MODEL, "--question", question, "--out", out, "--tokens", 100]
    arguments += ["--at-once", 2, "--engine", json.dumps(ENGINE)]
    done = run(*arguments)
    assert done.returncode == 1 and "4 videos, 1 answered before." in done.stderr, done.stderr[-3000:]
    rows = {row["video"]: row for row in map(json.loads, out.read_text().splitlines())}
    assert rows["0.mp4"] == before and len(rows) == 4
    assert {name: rows[name]["answer"] for name in ("1.mp4", "2.mp4")} == {
        name: answers[name] for name in ("1.mp4", "2.mp4")
    }
    assert rows["1.mp4"]["finish_reason"] == "stop" and rows["1.mp4"]["prompt_tokens"] > 360
    assert rows["broken.mp4"]["error"]
    (folder / "broken.mp4").unlink()
    done = run(*arguments)
    assert done.returncode == 0 and "3 videos, 3 answered before." in done.stderr
    assert {row["video"] for row in map(json.loads, out.read_text().splitlines())} == set(answers)
