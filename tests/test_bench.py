"""`vllm-std bench`: plain vLLM and std on real servers, by vLLM's own benchmark; what it says adds up."""

import json
from importlib.metadata import entry_points
from statistics import median

import pytest
from helpers import SIGN_MODEL, std
from servers import serve
from typer.testing import CliRunner

from vllm_std.patches.benchmark import flags, without_std
from vllm_std.tools.cli import app
from vllm_std.tools.demo.sign_video import write_video

ENGINE = {"dtype": "float32", "block_size": 32, "enforce_eager": True, "max_model_len": 1024, "max_num_seqs": 4}
ENGINE |= {"kv_cache_memory_bytes": 2**28, "skip_mm_profiling": True}


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "prompts.jsonl"
    rows = [
        {"prompt": "What can be seen at 123?"},
        {"messages": [{"role": "user", "content": "Describe scenes 1 to 9."}]},
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def bench(*arguments) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of the command."""
    done = CliRunner().invoke(app, ["bench", *map(str, arguments)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


def adds_up(found: dict, answers: int, tokens: int, repeats: int) -> None:
    for row in found["rows"]:
        plain, drafting = row["plain"], row["std"]
        assert row["equal_answers"] == row["answers"] == answers * repeats
        assert plain["input_tokens"] == drafting["input_tokens"] > 0
        assert 0 < plain["output_tokens"] == drafting["output_tokens"] <= answers * tokens
        for name, over, under, what in (
            ("speedup", plain, drafting, "tpot_ms_of_repeats"),
            ("throughput_ratio", drafting, plain, "output_tokens_per_s_of_repeats"),
        ):
            ratios = [a / b for a, b in zip(over[what], under[what], strict=True)]
            assert len(ratios) == repeats and row[name] == pytest.approx(median(ratios), rel=0.01)
            assert row[f"{name}_range"] == pytest.approx([min(ratios), max(ratios)], rel=0.01)
        assert 0 < row["acceptance"] <= 1 < row["mean_acceptance_length"] and row["drafted"] > 0


def test_a_running_server_is_compared_with_itself_without_std(models, prompts, tmp_path):
    options = ["--speculative-config", json.dumps(std(num_speculative_tokens=3))]
    with serve(str(models("llama")), tmp_path / "log", *options, "--max-model-len", "1024") as url:
        arguments = ["--prompts", prompts, "--concurrency", "1,2", "--tokens", 8, "--repeats", 2]
        arguments += ["--out", tmp_path / "out"]
        code, stdout, _ = bench("--url", url, *arguments, "--json")
        assert code == 0
        found = json.loads(stdout)
        assert [row["concurrency"] for row in found["rows"]] == [1, 2] and found["settings"]["one_server"]
        adds_up(found, answers=2, tokens=8, repeats=2)
        assert json.loads((tmp_path / "out/results.json").read_text()) == found
        assert (tmp_path / "out/bench.png").read_bytes().startswith(b"\x89PNG")
        assert "Serving Benchmark Result" in (tmp_path / "out/vllm-bench.txt").read_text()
        code, stdout, _ = bench("--url", url, *arguments, "--limit", 1, "--concurrency", 1, "--repeats", 1)
        assert code == 0 and "std over" in stdout and "with std left out" in stdout and "1 of 1" in stdout


def test_a_model_gets_a_server_for_each_side(tmp_path):
    """With videos, which reach the server inside the request."""
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos/signs.mp4", scenes=20, patches=2, seed=1, sentences=2)
    arguments = ["--videos", tmp_path / "videos", "--limit", 2, "--concurrency", 2, "--tokens", 24, "--json"]
    arguments += ["--repeats", 1]
    engine = ENGINE | {"media_io_kwargs": {"video": {"num_frames": -1}}}
    options = {"adaptive": False, "top_k": 192}
    arguments += ["--engine", json.dumps(engine), "--std", json.dumps(options), "--out", tmp_path / "out"]
    code, stdout, stderr = bench("--model", SIGN_MODEL, *arguments)
    assert code == 0, stderr
    found = json.loads(stdout)
    adds_up(found, answers=2, tokens=24, repeats=1)
    assert found["rows"][0]["plain"]["input_tokens"] > 2 * 360, "the videos are there"
    assert found["settings"]["std"] == options and not found["settings"]["one_server"]


BAD = {
    "nothing to measure": ([], "give --model, to start servers with, or --url"),
    "both": (["--model", "m", "--url", "http://x"], "give --model, to start servers with, or --url"),
    "nobody there": (["--url", "http://127.0.0.1:9"], "no vLLM server answers at http://127.0.0.1:9"),
    "engine of another": (["--url", "http://x", "--std", '{"top_k": 9}'], "are for servers that are started here"),
    "no JSON": (["--model", "m", "--std", "top_k=9"], "--std top_k=9 is not a JSON object"),
    "an option std refuses": (["--model", str(SIGN_MODEL), "--std", '{"top_k": -9}'], "top_k=-9"),
    "no concurrency": (["--model", "m", "--concurrency", "0"], "--concurrency 0 does not work"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.unit
def test_what_does_not_work_is_one_sentence(name, prompts, tmp_path):
    arguments, says = BAD[name]
    code, stdout, stderr = bench("--prompts", prompts, "--out", tmp_path / "out", *arguments)
    assert code == 2 and stdout == "" and says in stderr
    assert [line for line in stderr.splitlines() if line.startswith("vllm-std:")] == stderr.splitlines()[-1:]


@pytest.mark.unit
def test_options_of_vllm_become_its_flags():
    given = {
        "max_model_len": 9,
        "enforce_eager": True,
        "enable_prefix_caching": False,
        "limit_mm_per_prompt": {"video": 1},
    }
    said = ["--max-model-len", "9", "--enforce-eager", "--no-enable-prefix-caching", "--limit-mm-per-prompt"]
    assert flags(given) == [*said, '{"video": 1}']


@pytest.mark.unit
def test_plain_servers_load_the_other_plugins_alone(monkeypatch):
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    others = {name for name in without_std().split(",") if name}
    assert others == {point.name for point in entry_points(group="vllm.general_plugins")} - {"std"}
    monkeypatch.setenv("VLLM_PLUGINS", "std")
    assert without_std() == ""
