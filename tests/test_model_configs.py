"""configs/*.yaml: vLLM's own parser takes each; its model is supported, at full size as far as a config goes, and
drafts as a model with random weights that is cut in layers and widths; what its comments say of sizes is so."""

import argparse
import re
import shlex

import full_models
import numpy as np
import pytest
import yaml
from helpers import ROOT, speculator_of, token_prompts
from tiny_models import SUPPORTED_VIDEO, video_prompt
from typer.testing import CliRunner
from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.entrypoints.cli.serve import cmd_init
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.utils.argparse_utils import FlexibleArgumentParser

from vllm_std.config import StdConfig
from vllm_std.tools.cli import app

FILES = {path.stem: path for path in sorted((ROOT / "configs").glob("*.yaml")) if path.stem != "std"}
each = pytest.mark.parametrize("name", FILES)
STAMP = 10  # tokens that Qwen3-VL says for each two frames, at most
ROOM = 512  # tokens for a question and an answer


def served(name: str) -> argparse.Namespace:
    """What `vllm serve --config FILE` reads."""
    parser = FlexibleArgumentParser()
    (command,) = cmd_init()
    command.subparser_init(parser.add_subparsers(dest="subparser"))
    return parser.parse_args(["serve", "--config", str(FILES[name])])


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """full(name): the folder of what a file of configs/ serves; full(hub name), of a model that it borrows from."""
    root, made = tmp_path_factory.mktemp("full"), {}

    def folder(name: str):
        if name not in made:
            made[name] = full_models.make(*(full_models.MODELS | full_models.BASES)[name], root / name)
        return made[name]

    return folder


def at_full_size(name: str, full) -> EngineArgs:
    """On one device, as there is no more than one here."""
    args = served(name)
    args.model, args.tensor_parallel_size = str(full(name)), 1
    args.hf_config_path = args.hf_config_path and str(full(args.hf_config_path))
    return EngineArgs.from_cli_args(args)


@pytest.mark.unit
def test_every_family_has_a_file():
    assert set(FILES) == set(full_models.MODELS)


@each
@pytest.mark.unit
def test_vllms_parser_takes_it_and_std_takes_the_model(name, full):
    said = yaml.safe_load(FILES[name].read_text())
    assert served(name).model == said["model"]
    config = at_full_size(name, full).create_engine_config()
    assert type(config.speculative_config) is StdConfig
    assert config.speculative_config.top_k == said["speculative-config"]["top_k"]
    assert config.model_config.max_model_len == said["max-model-len"], "the model takes as much"
    heads = config.model_config.get_total_num_kv_heads()
    assert heads % said.get("tensor-parallel-size", 1) == 0


@pytest.mark.unit
def test_dual_chunk_attention_is_refused_where_it_would_be_used(full):
    with pytest.raises(ValueError, match=r"dual chunk attention.*configs/qwen2.5-7b-1m.yaml"):
        EngineArgs(model=str(full("qwen2.5-7b-1m")), max_model_len=4096, spec_method="std").create_engine_config()


@each
@pytest.mark.unit
def test_plan_says_what_the_comment_says(name, full):
    command, verdict = re.search(r"^# (vllm-std plan .*)\n#   (.*) \(predicted", FILES[name].read_text(), re.M).groups()
    done = CliRunner().invoke(app, shlex.split(command)[1:] + ["--model", str(full(name))])
    assert f"{verdict}:" in done.output and "which fits" in done.output
    said = dict(zip(shlex.split(command)[2::2], shlex.split(command)[3::2]))
    args = served(name)
    assert int(said["--k"]) == args.speculative_config["top_k"]
    assert int(said["--context"]) == args.max_model_len and int(said["--batch"]) <= args.max_num_seqs
    assert int(said.get("--tensor-parallel-size", 1)) == args.tensor_parallel_size


def visual_tokens(args: EngineArgs, tiny: str, frames: int) -> int:
    """Of a video in full HD, by vLLM's own account."""
    processor = MULTIMODAL_REGISTRY.create_processor(args.create_engine_config().model_config)
    sizes = dict(image_width=1920, image_height=1080, num_frames=frames)
    if tiny.startswith("qwen"):
        info = processor.info
        asked = info.get_video_processor() if tiny == "qwen3_vl" else info.get_image_processor()
        sizes |= dict(image_processor=asked, mm_kwargs=args.mm_processor_kwargs["videos_kwargs"])
    return processor.info.get_num_video_tokens(**sizes)


@pytest.mark.parametrize("name", [name for name in FILES if full_models.MODELS[name][0] in SUPPORTED_VIDEO])
@pytest.mark.unit
def test_a_video_of_so_many_frames_has_room(name, full):
    args, tiny = at_full_size(name, full), full_models.MODELS[name][0]
    frames = args.media_io_kwargs["video"]["num_frames"]
    tokens = visual_tokens(args, tiny, frames)
    stamps = STAMP * frames // 2 if tiny == "qwen3_vl" else 0
    assert tokens + stamps + ROOM <= args.max_model_len
    assert tokens > args.max_model_len / 2, "the frames use the context"


@each
@pytest.mark.engine
def test_a_model_of_that_architecture_drafts(name, engines, models):
    tiny, args = full_models.MODELS[name][0], served(name)
    shown = {"mm_processor_kwargs": args.mm_processor_kwargs} if tiny in SUPPORTED_VIDEO else {}
    if tiny in ("qwen2_vl", "qwen2_5_vl"):
        shown |= {"limit_mm_per_prompt": args.limit_mm_per_prompt}
    options = args.speculative_config | {"method": "std", "adaptive": False, "top_k": 128}
    llm = engines(models(tiny), options, max_model_len=2048, **shown)
    prompts = token_prompts([300, 40])
    if tiny in SUPPORTED_VIDEO:
        prompts.append(video_prompt(tiny, np.random.default_rng(0).integers(0, 256, (4, 90, 160, 3), dtype=np.uint8)))
    answers = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=8, ignore_eos=True), use_tqdm=False)
    assert [len(answer.outputs[0].token_ids) for answer in answers] == [8] * len(prompts)
    assert speculator_of(llm).vllm_config.speculative_config.num_speculative_tokens == options["num_speculative_tokens"]
