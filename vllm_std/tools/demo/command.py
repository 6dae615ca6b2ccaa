"""The command `vllm-std demo`: questions about videos to std and to plain vLLM, over real servers."""

import json
from pathlib import Path
from typing import Annotated

import typer

from vllm_std.tools.console import ENGINE_HELP, JsonOption, fail, json_object, quiet
from vllm_std.tools.demo import MODEL

TOP_K = 1024  # tokens that drafts attend to
BUNDLED_TOP_K = 192  # the same for the bundled model, whose generated video has 1,800 tokens
TOP_K_HELP = f"tokens that drafts attend to [default: {TOP_K}; bundled: {BUNDLED_TOP_K}]"
EPILOG = """
Examples:

    vllm-std demo

    vllm-std demo --model Qwen/Qwen2.5-VL-7B-Instruct --video clip.mp4 --question "What happens, and when?"
"""


def demo(
    model: Annotated[str, typer.Option(help="folder or hub name of a video model", show_default="bundled")] = MODEL,
    video: Annotated[Path | None, typer.Option(help="an mp4 [default: a generated one]")] = None,
    question: Annotated[str | None, typer.Option(help="about the video [default: one generated with it]")] = None,
    policy: Annotated[str, typer.Option(help="selection policy: verify, text or streaming")] = "verify",
    top_k: Annotated[int | None, typer.Option(help=TOP_K_HELP)] = None,
    gamma: Annotated[int, typer.Option(help="draft length, in tokens")] = 5,
    tokens: Annotated[int, typer.Option(min=2, help="most tokens of the answer")] = 400,
    clients: Annotated[int, typer.Option(min=0, help="that ask at the same time, for speed; 0: none")] = 8,
    turns: Annotated[int, typer.Option(min=1, help="of each side, for speed")] = 5,
    engine: Annotated[str, typer.Option(help=ENGINE_HELP)] = "{}",
    as_json: JsonOption = False,
) -> None:
    """Ask a video model through std and through plain vLLM: whether the answers are equal, and which is faster.

    First one question, with a fixed draft length; on a CPU in float32, where the answers must be equal. Then several
    clients at once, about a longer video that is in the prefix cache, with std's defaults. The servers are real, and
    so are the OpenAI clients and the streams. Without --model the bundled model, trained on generated videos, answers
    about two of them; that takes four to nine minutes on two cores without a GPU.
    """
    quiet()
    from vllm_std.tools.demo.run import DemoSettings, run

    top_k = top_k or (BUNDLED_TOP_K if model == MODEL else TOP_K)
    std = {"method": "std", "adaptive": False, "num_speculative_tokens": gamma, "top_k": top_k, "selection": policy}
    try:
        settings = DemoSettings(model, video, question, json_object(engine), std, tokens, clients, turns)
        found = run(settings, as_json, _say_nothing if as_json else typer.echo)
    except (ValueError, OSError) as error:
        raise fail(error) from None
    must_be_equal = found.pop("must_be_equal")
    if as_json:
        typer.echo(json.dumps(found | {"policy": policy, "top_k": top_k, "gamma": gamma}))
    raise typer.Exit(must_be_equal and not found["greedy_equal"])


def _say_nothing(text: str, nl: bool = True) -> None:
    """In place of `typer.echo`."""
