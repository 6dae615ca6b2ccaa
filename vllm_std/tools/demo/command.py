"""The command `vllm-std demo`: questions about videos to std and to plain vLLM, over real servers."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from vllm_std.tools.bench.run import Server
from vllm_std.tools.demo import MODEL, clients, exact, questions, servers

EPILOG = """
Examples:

    vllm-std demo

    vllm-std demo --model Qwen/Qwen2.5-VL-7B-Instruct --video clip.mp4 --question "What happens, and when?"
"""


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
    at_once: Annotated[int, typer.Option("--clients", min=0, help="that ask at the same time, for speed; 0: none")] = 8,
    turns: Annotated[int, typer.Option(min=1, help="of each side, for speed")] = 5,
    engine: Annotated[str, typer.Option(help="arguments of vLLM, as JSON: '{\"max_model_len\": 32768}'")] = "{}",
    as_json: Annotated[bool, typer.Option("--json", help="print JSON, and nothing else")] = False,
) -> None:
    """Ask a video model through std and through plain vLLM: whether the answers are equal, and which is faster.

    First one question, with a fixed draft length; on a CPU in float32, where the answers must be equal. Then several
    clients at once, about a longer video that is in the prefix cache, with std's defaults. The servers are real, and
    so are the OpenAI clients and the streams. Without --model the bundled model, trained on generated videos, answers
    about two of them; that takes four minutes on two cores without a GPU.
    """
    from vllm_std.tools.bench.run import SIDES, own_servers
    from vllm_std.tools.check import require
    from vllm_std.tools.console import fail, json_object, quiet

    quiet()
    top_k = top_k or (192 if model == MODEL else 1024)
    options = {"method": "std", "adaptive": False, "num_speculative_tokens": gamma, "top_k": top_k, "selection": policy}
    show = (lambda text, nl=True: None) if as_json else typer.echo
    try:
        given = json_object(engine)
        settings, first = servers.for_one(given), questions.one(video, question)
        require(model, settings | {"speculative_config": options})
        asked = clients.Clients(questions.several(video, question, at_once) if at_once else [], tokens, turns)
        many = own_servers(model, servers.for_many(given, at_once, all_frames=video is None), {})
        early = SIDES if servers.on_cpu() else ()  # a GPU has no memory for several servers
        if early:
            servers.use_all_cores()
        with servers.started(many, early if at_once else (), at_a_time=1) as many:
            with servers.started(own_servers(model, settings, options), early, at_a_time=2) as one:
                result = exact.compare(one, model, options, first, tokens, show)
            show(f"\n{exact.sentence(result)}")
            if at_once:
                result["together"] = _race(many, asked, as_json, show)
    except (ValueError, OSError) as error:
        raise fail(error) from None
    if as_json:
        typer.echo(json.dumps(result | {"policy": policy, "top_k": top_k, "gamma": gamma}))
    raise typer.Exit(settings.get("dtype") == "float32" and not result["greedy_equal"])


def _race(server: Server, asked: clients.Clients, silent: bool, show) -> dict[str, Any]:
    show(f"\nvideo:    {asked.questions[0].video}\n{len(asked.questions)} clients at once, the first of them asks:")
    show(f"question: {asked.questions[0].text}\n")
    said = clients.summary(asked, clients.race(asked, server, servers.on_cpu(), partial(_watch, silent)))
    show(f"\n{clients.sentence(said)}")
    return said


@contextmanager
def _watch(silent: bool, side: str) -> Iterator[clients.Show]:
    """Show the tokens of a turn, and how many a second: on a terminal as they come, else when the turn ends."""
    from rich.live import Live
    from rich.text import Text

    from vllm_std.tools.console import terminal

    begun, console, line = time.perf_counter(), terminal(sys.stdout), Text()

    def came(tokens: int) -> None:
        line.plain = f"{side:5} {tokens:6,} tokens {tokens / (time.perf_counter() - begun):6,.0f} tokens/s"

    if silent or not console.is_terminal:
        yield came
        if not silent:
            console.print(line)
    else:
        with Live(line, console=console):
            yield came
