"""Asks a running server about a video, and prints the answer as it is made.

vllm serve Qwen/Qwen2.5-VL-7B-Instruct --speculative-method std
python scripts/examples/client.py clip.mp4 "What happens, and when?"
python scripts/examples/client.py clip.mp4 "What happens, and when?" --plain      # this request without std
"""

import base64
import time
from pathlib import Path
from typing import Annotated

import typer
from openai import OpenAI, OpenAIError


def main(
    video: Annotated[Path, typer.Argument(help="an mp4", exists=True, dir_okay=False)],
    question: Annotated[str, typer.Argument(help="about the video")],
    url: Annotated[str, typer.Option(help="of the server")] = "http://localhost:8000",
    tokens: Annotated[int, typer.Option(help="most tokens of the answer")] = 512,
    temperature: Annotated[float, typer.Option(help="0 is greedy")] = 0.0,
    plain: Annotated[bool, typer.Option("--plain", help="leave std out of this request")] = False,
) -> None:
    client = OpenAI(base_url=f"{url}/v1", api_key="none")
    data = "data:video/mp4;base64," + base64.b64encode(video.read_bytes()).decode()
    content = [{"type": "video_url", "video_url": {"url": data}}, {"type": "text", "text": question}]
    options = {"max_tokens": tokens, "temperature": temperature}
    options["extra_body"] = {"vllm_xargs": {"std": False}} if plain else {}
    try:
        said = answer(client, content, **options)
    except OpenAIError as error:  # no server, a video that it cannot read, a context that is too long, ...
        typer.echo(f"client.py: {url}: {error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(f"\n[{said}]", err=True)


def answer(client: OpenAI, content: list[dict], **options) -> str:
    """Print an answer as it comes; returns what it took."""
    begun, first, used = time.perf_counter(), None, None
    stream = client.chat.completions.create(
        model=client.models.list().data[0].id, messages=[{"role": "user", "content": content}], stream=True,
        stream_options={"include_usage": True}, **options,
    )  # fmt: skip
    for chunk in stream:
        used = chunk.usage or used
        if chunk.choices and chunk.choices[0].delta.content:
            first = first or time.perf_counter()
            print(chunk.choices[0].delta.content, end="", flush=True)
    last = time.perf_counter()
    said = f"{used.prompt_tokens:,} tokens of prompt; the first token after {(first or last) - begun:.2f} s"
    if first and used.completion_tokens > 1:
        said += f", {1e3 * (last - first) / (used.completion_tokens - 1):.1f} ms for each of {used.completion_tokens}"
    return said


if __name__ == "__main__":
    typer.run(main)
