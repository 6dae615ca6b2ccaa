"""Every way to switch std on gives the same configuration; what it cannot honour is refused in one sentence."""

import json
import sys
from dataclasses import fields

import pytest
import yaml
from helpers import ROOT, SIGN_MODEL
from vllm.config import SpeculativeConfig
from vllm.engine.arg_utils import AsyncEngineArgs, EngineArgs
from vllm.entrypoints.cli import main
from vllm.utils.argparse_utils import FlexibleArgumentParser

from vllm_std.config import StdConfig

pytestmark = [pytest.mark.unit, pytest.mark.versions]

OPTIONS = {"method": "std", "num_speculative_tokens": 6, "top_k": 512, "selection": "streaming"}


def serve_args(*argv) -> EngineArgs:
    """What `vllm serve MODEL ARGV` makes of its command line."""
    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
    return AsyncEngineArgs.from_cli_args(parser.parse_args(["--model", str(SIGN_MODEL), *argv]))


def speculative(args: EngineArgs) -> StdConfig:
    return args.create_engine_config().speculative_config


def python_args(**options) -> EngineArgs:
    return EngineArgs(model=str(SIGN_MODEL), max_model_len=1024, **options)


@pytest.mark.parametrize("flag", ["--speculative-method", "--spec-method", "--speculative_method"])
def test_the_method_alone_is_enough(flag):
    config = speculative(serve_args(flag, "std"))
    assert type(config) is StdConfig
    assert (config.num_speculative_tokens, config.top_k, config.selection) == (8, 1024, "verify")
    assert config.draft_sample_method == "probabilistic"


@pytest.mark.parametrize(
    "argv",
    [
        ["--speculative-config", json.dumps(OPTIONS)],
        ["--speculative-config", json.dumps({k.replace("_", "-"): v for k, v in OPTIONS.items()})],
        [word for k, v in OPTIONS.items() for word in (f"--speculative-config.{k}", str(v))],
        ["--speculative-method", "std", "--spec-tokens", "6"]
        + ["--speculative-config", json.dumps({"top_k": 512, "selection": "streaming"})],
    ],
    ids=["json", "hyphens", "dotted", "flags and json"],
)
def test_every_spelling_gives_the_same_configuration(argv):
    config = speculative(serve_args(*argv))
    assert {key: getattr(config, key) for key in OPTIONS} == OPTIONS


def test_config_file(tmp_path):
    file = tmp_path / "std.yaml"
    file.write_text(yaml.safe_dump({"speculative-config": json.dumps(OPTIONS), "max-model-len": 2048}))
    config = speculative(serve_args("--config", str(file)))
    assert {key: getattr(config, key) for key in OPTIONS} == OPTIONS
    file.write_text(yaml.safe_dump({"speculative-method": "std"}))
    assert type(speculative(serve_args("--config", str(file)))) is StdConfig


def test_the_shipped_config_file_says_the_defaults():
    config = speculative(serve_args("--config", str(ROOT / "configs/std.yaml")))
    default = speculative(serve_args("--speculative-method", "std"))
    assert {key: getattr(config, key) for key in StdConfig.OPTIONS} == {
        key: getattr(default, key) for key in StdConfig.OPTIONS
    }


def test_python_api():
    by_config = speculative(python_args(speculative_config=OPTIONS))
    assert {key: getattr(by_config, key) for key in OPTIONS} == OPTIONS
    assert type(speculative(python_args(spec_method="std"))) is StdConfig


def test_help_shows_the_method(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["vllm", "serve", "--help=speculative-method"])
    with pytest.raises(SystemExit):
        main.main()
    text = capsys.readouterr().out
    assert "--speculative-method {" in text and ",std}" in text and "std: the target drafts" in " ".join(text.split())


def test_the_scheduler_reserves_a_slot_for_every_drafted_token():
    config = python_args(speculative_config=OPTIONS).create_engine_config()
    assert config.num_lookahead_tokens == config.num_speculative_tokens == 6
    assert config.speculative_config.max_num_new_slots_for_drafting == 0


@pytest.mark.parametrize("method, warned", [("std", False), ("ngram", True)])
def test_no_warning_of_a_token_budget_that_std_does_not_touch(method, warned, monkeypatch):
    """vLLM has one for methods that reserve slots of it."""
    said = []
    monkeypatch.setattr("vllm.config.vllm.logger.warning_once", lambda message, *args, **_: said.append(message))
    options = {"method": method, "num_speculative_tokens": 3} | ({"prompt_lookup_max": 3} if warned else {})
    made = python_args(speculative_config=options, max_num_batched_tokens=2048).create_engine_config()
    assert any("suboptimal" in message for message in said) == warned
    assert made.scheduler_config.max_num_scheduled_tokens == 2048


def test_the_scheduler_is_stds_and_nobody_elses():
    made = python_args(speculative_config=OPTIONS).create_engine_config().scheduler_config
    assert made.get_scheduler_cls().__name__ in ("StdScheduler", "AsyncStdScheduler")
    assert python_args().create_engine_config().scheduler_config.scheduler_cls is None
    with pytest.raises(ValueError, match="--scheduler-cls=mine.Scheduler: start without it"):
        python_args(speculative_config=OPTIONS, scheduler_cls="mine.Scheduler").create_engine_config()


BAD_OPTIONS = [
    *(("num_speculative_tokens", value, "whole number") for value in (0, -1, 2.0, "5", True, None, [5])),
    *(("top_k", value, "a share, 0 < top_k <= 1.0") for value in (0, -16, 0.0, 1.5, 512.0, "all", True, [0.5])),
    ("top_k", 10_000, "at most 1024"),
    ("top_k_floor", 128, "give top_k as a share"),
    *(("top_k_floor", value, "whole number") for value in (-1, 0.5)),
    *(("refresh", value, "whole number of rounds") for value in (0, 1.5)),
    ("top_k", 64, "leaves no block to choose"),
    *(("sink", value, "whole number") for value in (-1, 1.5)),
    *(("recent", value, "whole number") for value in (-1, "64")),
    *(("proposals", value, "whole number of tokens >= 0") for value in (-1, 1.5, None)),
    ("proposals", 4096, "at most 1024"),
    *(("prompt_lookup_max", value, "whole number of tokens >= 1") for value in (0, 2.0)),
    ("prompt_lookup_min", 2, "give proposals"),
    ("selection", "best", "use one of verify, text, streaming"),
    ("selection", ["verify"], "use one of verify, text, streaming"),
    ("rejection_sample_method", "fly", "standard, block, synthetic"),
    ("draft_sample_method", "beam", "greedy"),
    *((option, value, "true nor false") for option in ("adaptive", "calibrate") for value in (1, "no", None)),
    *(("selection", name, "use one of verify, text, streaming") for name in ("exact", "random")),  # the lab's
    ("coverage", 0.9, "no option coverage"),
    ("topk", 512, "no option topk"),
    ("model", "another/model", "no option model"),
    ("num_speculative_tokens_per_batch_size", [[1, 8, 3]], "no option"),
    ("parallel_drafting", True, "no option"),
]


@pytest.mark.parametrize("option,value,works", BAD_OPTIONS, ids=lambda value: str(value)[:30])
def test_bad_options_are_named_with_their_value(option, value, works):
    with pytest.raises(ValueError) as error:
        python_args(block_size=32, speculative_config={"method": "std", option: value}).create_engine_config()
    message = str(error.value)
    assert option in message and works in message
    assert str(value) in message


OTHERS = sorted(field.name for field in fields(SpeculativeConfig) if field.name not in (*StdConfig.OPTIONS, "method"))


@pytest.mark.parametrize("option", OTHERS)
def test_an_option_of_other_methods_is_refused_and_not_ignored(option):
    """All that this vLLM's SpeculativeConfig has, whatever a user gives it."""
    with pytest.raises(ValueError, match=f"no option {option}="):
        python_args(speculative_config={"method": "std", option: 1}).create_engine_config()


def test_flags_of_other_methods_are_refused_and_not_ignored():
    """Those that `vllm serve --help` shows for speculative decoding."""
    parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
    flags = {flag for flag in parser._option_string_actions if flag.startswith("--spec-")}
    assert flags == {"--spec-method", "--spec-model", "--spec-tokens"}
    with pytest.raises(ValueError, match="no option model='another/model'"):
        python_args(spec_method="std", spec_model="another/model").create_engine_config()
    assert speculative(python_args(spec_method="std", spec_tokens=3)).num_speculative_tokens == 3


def test_a_watermark_is_refused():
    with pytest.raises(ValueError, match="Watermarking supports only .* speculative decoding"):  # by vLLM itself
        watermark = {"key": 1, "allow_target_only_watermarking": True}
        python_args(spec_method="std", watermark_config=watermark).create_engine_config()


POINTLESS = [
    ("prompt_lookup_min=5", "prompt_lookup_min <= 4", {"proposals": 2, "prompt_lookup_min": 5, "prompt_lookup_max": 4}),
    ("refresh=4", "use selection verify", {"refresh": 4, "selection": "text"}),
    ("top_k=0.05 of max_model_len=1024, 52 tokens,", "top_k >= 128", {"top_k": 0.05, "top_k_floor": 0}),
]


@pytest.mark.parametrize("named,works,options", POINTLESS, ids=[named for named, *_ in POINTLESS])
def test_options_without_effect_are_refused(named, works, options):
    with pytest.raises(ValueError, match=f"{named} .*{works}"):
        python_args(block_size=32, speculative_config={"method": "std", **options}).create_engine_config()


@pytest.mark.parametrize(
    "argv",
    [
        ["--speculative-config", '{"method": "std", "top_k": 0.25}'],
        ["--speculative-config.method", "std", "--speculative-config.top_k", "0.25"],
    ],
)
def test_the_budget_may_be_a_share_of_the_context(argv):
    config = speculative(serve_args(*argv))
    assert (config.top_k, config.top_k_floor) == (0.25, 256)


def test_an_option_given_twice_is_refused():
    with pytest.raises(ValueError, match="given twice"):
        speculative(python_args(spec_tokens=3, speculative_config=OPTIONS))
    with pytest.raises(ValueError, match="given twice"):
        speculative(python_args(spec_method="std", speculative_config={"method": "ngram"}))


@pytest.mark.parametrize(
    "given,n_grams",
    [({}, (1, 3)), ({"prompt_lookup_min": 5}, (5, 5)), ({"prompt_lookup_max": 2}, (1, 2))],
    ids=str,
)
def test_lengths_of_n_grams(given, n_grams):
    config = speculative(python_args(speculative_config={"method": "std", "proposals": 2, **given}))
    assert (config.prompt_lookup_min, config.prompt_lookup_max) == n_grams
    assert config.changed(refresh=2).proposals == 2


def test_more_proposals_than_fit_in_a_pass_are_refused():
    asked = {"method": "std", "proposals": 7}
    with pytest.raises(
        ValueError, match="proposals=7: use fewer, --max-num-batched-tokens 4096, or a smaller --max-num"
    ):
        python_args(speculative_config=asked, max_num_seqs=512, max_num_batched_tokens=2048).create_engine_config()


BAD_SETTINGS = [
    ("--pipeline-parallel-size=2", dict(pipeline_parallel_size=2)),
    ("--kv-cache-dtype=int8_per_token_head", dict(kv_cache_dtype="int8_per_token_head")),
    ("--attention-backend=FLASHINFER", dict(attention_backend="FLASHINFER")),
    (
        "--kv-transfer-config=SimpleCPUOffloadConnector",
        dict(kv_transfer_config={"kv_connector": "SimpleCPUOffloadConnector", "kv_role": "kv_both"}),
    ),
]


@pytest.mark.parametrize("named,options", BAD_SETTINGS, ids=[named for named, _ in BAD_SETTINGS])
def test_unsupported_settings_are_refused_before_anything_is_loaded(named, options):
    with pytest.raises(ValueError, match=f"'std' does not support {named}: (use|start|serve) "):
        python_args(speculative_config=OPTIONS, **options).create_engine_config()


def test_decode_context_parallelism_is_refused():
    config = python_args(speculative_config=OPTIONS).create_engine_config()
    config.parallel_config.decode_context_parallel_size = 2  # this platform's vLLM refuses it first
    from vllm_std.refusals import refuse_unsupported

    with pytest.raises(ValueError, match="--decode-context-parallel-size=2: use --decode-context-parallel-size 1"):
        refuse_unsupported(config)


def test_model_runner_v1_is_refused(monkeypatch):
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "0")
    with pytest.raises(ValueError, match="VLLM_USE_V2_MODEL_RUNNER=0: .*unset"):
        python_args(speculative_config=OPTIONS).create_engine_config()
