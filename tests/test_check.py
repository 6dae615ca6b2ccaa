"""`vllm-std check` says whether std would start here, and why not, without starting anything."""

import json

import pytest
import vllm
from conftest import SIGN_MODEL
from tiny_models import REFUSED
from typer.testing import CliRunner
from vllm.engine.arg_utils import EngineArgs

from vllm_std.cli import app
from vllm_std.config import BACKENDS

pytestmark = pytest.mark.fast


def check(*arguments: str) -> tuple[int, dict]:
    done = CliRunner().invoke(app, ["check", "--json", *arguments])
    assert done.exit_code in (0, 1), done.output
    said = json.loads(done.stdout)
    assert said["ok"] == (done.exit_code == 0)
    return done.exit_code, {finding["name"]: finding for finding in said["findings"]}


def refusal(found: dict) -> str:
    """What is wrong, in one sentence; one thing at a time."""
    (finding,) = [finding for finding in found.values() if finding["ok"] is False]
    assert "\n" not in finding["says"] and "Traceback" not in finding["says"]
    return finding["says"]


def test_here_std_would_start():
    status, found = check("--model", str(SIGN_MODEL), "--engine", '{"max_model_len": 4096, "block_size": 32}')
    assert status == 0
    assert found["vLLM"]["says"] == vllm.__version__
    assert found["backend"]["says"] in BACKENDS
    assert "top_k=1024" in found["drafts"]["says"]


def test_without_a_model_the_installation_is_checked():
    status, found = check()
    assert status == 0 and {"vLLM", "plugin", "seams", "runner", "device"} == set(found)


def test_a_terminal_gets_a_table():
    done = CliRunner().invoke(app, ["check"])
    assert done.exit_code == 0 and "ok" in done.stdout and "ledger" in done.stdout


@pytest.mark.parametrize("name", sorted(set(REFUSED) - {"whisper"}))
def test_a_model_that_would_be_refused_is(models, name):
    status, found = check("--model", str(models(name)))
    assert status == 1
    assert "std" in refusal(found) or "Model Runner V2" in refusal(found)


@pytest.mark.parametrize(
    "engine,named",
    [
        ({"pipeline_parallel_size": 2}, "--pipeline-parallel-size=2"),
        ({"speculative_config": {"method": "std", "top_k": -1}}, "top_k=-1"),
        ({"speculative_config": {"method": "std", "top_q": 1}}, "no option top_q"),
        ({"max_model_length": 5}, "max_model_length"),
    ],
)
def test_options_that_would_be_refused_are(engine, named):
    status, found = check("--model", str(SIGN_MODEL), "--engine", json.dumps({"max_model_len": 4096} | engine))
    assert status == 1 and named in refusal(found)


def test_a_model_that_is_not_there_is_one_sentence():
    for name in ("/nowhere/at-all", "tests"):
        status, found = check("--model", name)
        assert status == 1 and name in refusal(found)


def test_another_vllm_is_refused(monkeypatch):
    monkeypatch.setattr(vllm, "__version__", "0.31.2")
    status, found = check()
    assert status == 1 and "this is vLLM 0.31.2" in refusal(found)


def test_a_missing_seam_is_named(monkeypatch):
    monkeypatch.delattr(EngineArgs, "create_speculative_config")
    status, found = check()
    assert status == 1 and "create_speculative_config" in refusal(found)


def test_a_plugin_that_vllm_is_told_to_leave_out_is_found(monkeypatch):
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    status, found = check()
    assert status == 1 and "VLLM_PLUGINS=other" in refusal(found)
