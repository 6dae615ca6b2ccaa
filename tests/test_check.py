"""`vllm-std check` says whether std would start here, and why not, without starting anything."""

import json
import re

import pytest
import vllm
from helpers import SIGN_MODEL
from tiny_models import REFUSED
from typer.testing import CliRunner
from vllm.engine.arg_utils import EngineArgs

from vllm_std.patches import fit
from vllm_std.patches.contract import CONTRACT
from vllm_std.refusals import BACKENDS
from vllm_std.tools.cli import app

pytestmark = [pytest.mark.unit, pytest.mark.versions]


def check(*arguments: str) -> tuple[int, dict]:
    said = findings(*arguments)
    return int(any(finding["ok"] is False for finding in said)), {finding["name"]: finding for finding in said}


def findings(*arguments: str) -> list[dict]:
    done = CliRunner().invoke(app, ["check", "--json", *arguments])
    assert done.exit_code in (0, 1), done.output
    said = json.loads(done.stdout)
    assert said["ok"] == (done.exit_code == 0) == all(finding["ok"] is not False for finding in said["findings"])
    return said["findings"]


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
    assert found["memory"]["says"].startswith("3.1% of the KV cache")


def test_a_policy_that_keeps_no_queries_takes_no_memory_for_them():
    engine = {
        "max_model_len": 4096,
        "block_size": 32,
        "speculative_config": {"method": "std", "selection": "streaming"},
    }
    _, found = check("--model", str(SIGN_MODEL), "--engine", json.dumps(engine))
    assert found["memory"]["says"].startswith("0.0% of the KV cache for key summaries, and ")
    (said,) = re.findall(r"(\d+) MiB", found["memory"]["says"])
    assert int(said) < 5


def test_more_requests_than_fit_are_said_to_cost_memory():
    engine = {"max_model_len": 4096, "block_size": 32, "max_num_seqs": 900, "kv_cache_memory_bytes": 2**27}
    said = [finding["says"] for finding in findings("--model", str(SIGN_MODEL), "--engine", json.dumps(engine))]
    assert any(text.startswith("--max-num-seqs 900 is far more than the ") for text in said)


FLEX = "vllm.v1.attention.backends.flex_attention.FlexAttentionBackend"
TRITON = "vllm.v1.attention.backends.triton_attn.TritonAttentionBackend"


@pytest.fixture
def platform(monkeypatch):
    """A platform whose first choice is none of std's, and that has TRITON_ATTN but not FLASH_ATTN."""
    from vllm.platforms import current_platform
    from vllm.v1.attention.selector import _cached_get_attn_backend

    def get_attn_backend_cls(cls, selected_backend, *args, **kwargs):
        if selected_backend is None:
            return FLEX
        if selected_backend.name == "TRITON_ATTN":
            return TRITON
        raise ValueError(f"{selected_backend.name} is not there")

    _cached_get_attn_backend.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr(type(current_platform), "get_attn_backend_cls", classmethod(get_attn_backend_cls))
        yield
    _cached_get_attn_backend.cache_clear()


@pytest.mark.usefixtures("platform")
def test_a_backend_that_std_drafts_on_is_chosen_where_nobody_chose_one(models):
    asked = dict(model=str(models("llama")), max_model_len=1024, block_size=32)
    config = EngineArgs(**asked, spec_method="std").create_engine_config()
    assert config.attention_config.backend.name == "TRITON_ATTN"
    assert EngineArgs(**asked).create_engine_config().attention_config.backend is None, "without std nothing changes"
    with pytest.raises(ValueError, match="--attention-backend=FLEX_ATTENTION"):
        EngineArgs(**asked, spec_method="std", attention_backend="FLEX_ATTENTION").create_engine_config()


def test_without_a_model_the_installation_is_checked():
    status, found = check()
    assert status == 0 and {"vLLM", "plugin", "patches", "runner", "device"} == set(found)


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
        (
            {"max_model_length": 5},
            "no engine argument max_model_length=5: names are those of its flags, as max_model_len.",
        ),
        ({"max_model_len": "long"}, "engine argument max_model_len='long' does not work"),
        ({"tensor_parallel_size": [2]}, "engine argument tensor_parallel_size=[2] does not work"),
        ({"kv_cache_dtype": 3}, "kv_cache_dtype=3"),
        ({"max_num_batched_tokens": 0}, "max_num_batched_tokens: Input should be greater"),
        ({"speculative_config": "std"}, "speculative_config='std'"),
    ],
)
def test_options_that_would_be_refused_are(engine, named):
    status, found = check("--model", str(SIGN_MODEL), "--engine", json.dumps({"max_model_len": 4096} | engine))
    assert status == 1 and named in refusal(found)


def test_a_model_that_is_not_there_is_one_sentence():
    for name in ("/nowhere/at-all", "tests"):
        status, found = check("--model", name)
        assert status == 1 and name in refusal(found)


def test_another_vllm_that_fits_is_said_to_be_untested(monkeypatch):
    monkeypatch.setattr(vllm, "__version__", "0.34.0")
    status, found = check()
    assert status == 0 and "0.34.0, which was not tested" in found["vLLM"]["says"]


@pytest.fixture
def changed():
    """What fits is found out once a process."""
    fit.misfits.cache_clear()
    yield
    fit.misfits.cache_clear()


def test_a_patch_that_does_not_fit_is_named(changed, monkeypatch):
    monkeypatch.delattr(EngineArgs, "create_speculative_config")
    status, found = check()
    assert status == 1 and "create_speculative_config is expected, and there is none" in refusal(found)


def test_the_names_that_patches_use_are_listed():
    done = CliRunner().invoke(app, ["check", "--json"])
    listed = json.loads(done.stdout)["patches"]
    assert {row["patch"] for row in listed} == set(CONTRACT)
    assert not [row for row in listed if row["misfit"]]
    assert "vllm.v1.core.sched.scheduler Scheduler.schedule" in CliRunner().invoke(app, ["check"]).stdout


def test_a_plugin_that_vllm_is_told_to_leave_out_is_found(monkeypatch):
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    status, found = check()
    assert status == 1 and "VLLM_PLUGINS=other" in refusal(found)
