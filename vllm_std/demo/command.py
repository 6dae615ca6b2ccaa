"""The command `vllm-std demo`: one question about a video to std and to plain vLLM, over real servers."""

import base64
import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from vllm_std.demo import MODEL

EPILOG = """
Examples:

    vllm-std demo

    vllm-std demo --model Qwen/Qwen2.5-VL-7B-Instruct --video clip.mp4 --question "What happens, and when?"
"""
ENGINE = {"max_model_len": 8192, "max_num_batched_tokens": 8192, "max_num_seqs": 8}
ON_CPU = {"dtype": "float32", "block_size": 32, "enforce_eager": True, "kv_cache_memory_bytes": 2**30}
COUNTED = {
    "drafted": "vllm:spec_decode_num_draft_tokens_total",
    "accepted": "vllm:spec_decode_num_accepted_tokens_total",
    "target_passes": "vllm:iteration_tokens_total_count",
}


@dataclass(frozen=True)
class Question:
    """right: the answer, where it is known."""

    video: Path
    text: str
    right: str | None = None


def demo(
    model: Annotated[str, typer.Option(help="folder or hub name of a video model", show_default="bundled")] = MODEL,
    video: Annotated[Path | None, typer.Option(help="an mp4 [default: a generated one]")] = None,
    question: Annotated[str | None, typer.Option(help="about the video [default: one generated with it]")] = None,
    policy: Annotated[str, typer.Option(help="verify, exact, text, streaming or random")] = "verify",
    top_k: Annotated[
        int | None, typer.Option(help="tokens that drafts attend to [default: 1024; bundled: 192]")
    ] = None,
    gamma: Annotated[int, typer.Option(help="draft length, in tokens")] = 5,
    tokens: Annotated[int, typer.Option(min=2, help="most tokens of the answer")] = 400,
    engine: Annotated[str, typer.Option(help="arguments of vLLM, as JSON: '{\"max_model_len\": 32768}'")] = "{}",
    as_json: Annotated[bool, typer.Option("--json", help="print JSON, and nothing else")] = False,
) -> None:
    """Ask a video model through std and through plain vLLM, and say what std saved.

    The servers are real, and so are the OpenAI client and the stream. Without --model the bundled model, trained on
    generated videos, answers about one of them; that takes two minutes on a laptop without a GPU.
    """
    from vllm_std.check import require
    from vllm_std.cli import _json, fail, quiet

    quiet()
    top_k = top_k or (192 if model == MODEL else 1024)
    options = {"method": "std", "adaptive": False, "num_speculative_tokens": gamma, "top_k": top_k, "selection": policy}
    show = (lambda text, nl=True: None) if as_json else typer.echo
    try:
        settings, given = _engine(_json(engine)), _question(video, question)
        require(model, settings | {"speculative_config": options})
        show(f"video:    {given.video}\nquestion: {given.text}")
        drafted = _served(model, settings | {"speculative_config": options}, given, tokens, show)
        plain = _served(model, settings, given, tokens, show)
    except (ValueError, OSError) as error:
        raise fail(error) from None
    result = _result(drafted, plain, given)
    if as_json:
        return typer.echo(json.dumps(result | {"policy": policy, "top_k": top_k, "gamma": gamma}))
    show(f"\n{_sentence(result)}")
    raise typer.Exit(settings.get("dtype") == "float32" and not result["greedy_equal"])


def _question(video: Path | None, question: str | None) -> Question:
    """Raises ValueError for a video without a question."""
    if video is None:
        return _generated(question)
    if question is None:
        raise ValueError("--video needs --question.")
    if not video.is_file():
        raise ValueError(f"--video {video} is not a file.")
    return Question(video, question)


def _generated(question: str | None) -> Question:
    """A video of 1,800 visual tokens for the bundled model, and a question that walks through it in no order."""
    if find_spec("av") is None:
        raise ValueError("the demo writes its video with PyAV: pip install av.")
    from vllm import envs

    from vllm_std.demo.sign_video import SignVideo

    path = Path(envs.VLLM_CACHE_ROOT) / "vllm_std" / "demo.mp4"
    path.parent.mkdir(parents=True, exist_ok=True)
    video = SignVideo(scenes=100, seed=1)
    video.write(path)
    asked = video.ask("list", sentences=9)
    return Question(path, question, None) if question else Question(path, asked["question"], asked["answer"])


def _engine(given: dict[str, Any]) -> dict[str, Any]:
    from vllm_std.seams import probe

    return ENGINE | (ON_CPU if probe.device()["platform"] == "cpu" else {}) | given


def _served(model: str, options: dict[str, Any], given: Question, tokens: int, show) -> dict[str, Any]:
    """{"text", "tokens", and by how much each of COUNTED rose}, from a server with these options."""
    from openai import OpenAI

    from vllm_std.seams import bench

    std = options.get("speculative_config")
    show(f"\n$ vllm serve {Path(model).name}" + (f" --speculative-config '{json.dumps(std)}'" if std else ""))
    with bench.served(model, options) as url:
        name, _ = bench.model_of(url)
        client = OpenAI(base_url=f"{url}/v1", api_key="none")
        before = _counters(client, url)
        found = _answer(client, name, given, tokens, show)
        return found | {metric: value - before[metric] for metric, value in _counters(client, url).items()}


def _answer(client, name: str, given: Question, tokens: int, show) -> dict[str, Any]:
    data = base64.b64encode(given.video.read_bytes()).decode()
    content = [{"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{data}"}}]
    stream = client.chat.completions.create(
        model=name, messages=[{"role": "user", "content": [*content, {"type": "text", "text": given.text}]}],
        temperature=0, max_tokens=tokens, stream=True, stream_options={"include_usage": True},
    )  # fmt: skip
    text, number = "", 0
    for chunk in stream:
        piece = (chunk.choices[0].delta.content or "") if chunk.choices else ""
        text, number = text + piece, chunk.usage.completion_tokens if chunk.usage else number
        show(piece, nl=False)
    show("")
    return {"text": text, "tokens": number}


def _counters(client, url: str) -> dict[str, int]:
    from prometheus_client.parser import text_string_to_metric_families

    text = client.with_options(base_url=url).get("/metrics", cast_to=str)
    found = {sample.name: sample.value for family in text_string_to_metric_families(text) for sample in family.samples}
    return {name: int(found.get(metric, 0)) for name, metric in COUNTED.items()}


def _result(std: dict[str, Any], plain: dict[str, Any], given: Question) -> dict[str, Any]:
    rate = round(std["accepted"] / std["drafted"], 4) if std["drafted"] else None
    result = {name: std[name] for name in ("tokens", *COUNTED)} | {"plain_target_passes": plain["target_passes"]}
    result |= {"acceptance_rate": rate, "greedy_equal": std["text"] == plain["text"]}
    return result | ({"answer_is_right": std["text"] == given.right} if given.right else {})


def _sentence(result: dict[str, Any]) -> str:
    equal = "word for word what plain vLLM says" if result["greedy_equal"] else "NOT what plain vLLM says"
    passes = f"{result['tokens']} tokens from {result['target_passes']} passes of the target instead of "
    passes += f"{result['plain_target_passes']}: {result['accepted']} of {result['drafted']} drafts were accepted."
    right = {True: " The answer is right.", False: " The answer is wrong.", None: ""}[result.get("answer_is_right")]
    return f"{passes} The answer is {equal}.{right}"
