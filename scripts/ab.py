"""One server, each question twice: with std and, by `vllm_xargs`, without. Shows both answers side by side.

    vllm serve Qwen/Qwen2.5-VL-7B-Instruct --speculative-method std
    python scripts/ab.py "Tell me about the Alps." "List the planets."
    python scripts/ab.py --video clip.mp4 "What happens, and when?" "Who is in it?"

One request at a time, and plain and std take turns in being first. `vllm-std bench` measures batches.
"""

import base64
import time
from pathlib import Path
from typing import Annotated

import typer
from openai import OpenAI, OpenAIError
from rich.console import Console
from rich.table import Table

SIDES = {"plain": {"vllm_xargs": {"std": False}}, "std": {}}


def ask(client: OpenAI, model: str, content, tokens: int, body: dict) -> dict:
    """The answer, and seconds to its first token and for each token after that."""
    begun, first, text, used = time.perf_counter(), None, "", None
    for chunk in client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": content}], temperature=0, max_tokens=tokens, stream=True,
        stream_options={"include_usage": True}, extra_body=body,
    ):  # fmt: skip
        used = chunk.usage or used
        if chunk.choices:
            first = first or time.perf_counter()
            text += chunk.choices[0].delta.content or ""
    last, number = time.perf_counter(), used.completion_tokens
    each = (last - first) / (number - 1) if number > 1 else None
    return {"text": text, "tokens": number, "first": first - begun, "each": each}


def require_std(client: OpenAI, url: str) -> None:
    """Raises ValueError where the server does not count what std does."""
    if "vllm:std_" not in client.get(f"{url}/metrics", cast_to=str):
        raise ValueError("this server runs without std: start it with --speculative-method std.")


def show(console: Console, question: str, found: dict[str, dict]) -> None:
    table = Table(title=question, show_lines=True)
    for side, answer in found.items():
        told = f"{answer['tokens']} token{'s' * (answer['tokens'] != 1)}, first {answer['first']:.2f} s"
        told += "" if answer["each"] is None else f", then {1e3 * answer['each']:.1f} ms each"
        table.add_column(f"{side}: {told}", ratio=1)
    table.add_row(*(answer["text"] for answer in found.values()))
    console.print(table)


def main(
    questions: Annotated[list[str], typer.Argument(help="one or more")],
    video: Annotated[Path | None, typer.Option(help="an mp4 that all of them are about", exists=True)] = None,
    url: Annotated[str, typer.Option(help="of a server with std")] = "http://localhost:8000",
    tokens: Annotated[int, typer.Option(help="most tokens of an answer")] = 256,
) -> None:
    client = OpenAI(base_url=f"{url}/v1", api_key="none")
    try:
        require_std(client, url)
        compare(client, questions, video, tokens)
    except (OpenAIError, ValueError) as error:
        typer.echo(f"ab.py: {url}: {error}", err=True)
        raise typer.Exit(1) from None


def compare(client: OpenAI, questions: list[str], video: Path | None, tokens: int) -> None:
    console, model, media = Console(), client.models.list().data[0].id, []
    if video:
        data = "data:video/mp4;base64," + base64.b64encode(video.read_bytes()).decode()
        media = [{"type": "video_url", "video_url": {"url": data}}]
    each, equal = {side: [] for side in SIDES}, 0
    ask(client, model, [*media, {"type": "text", "text": questions[0]}], 8, {})  # so that nobody pays for the first
    for number, question in enumerate(questions):
        content = [*media, {"type": "text", "text": question}]
        order = sorted(SIDES, reverse=number % 2 == 1)
        found = {side: ask(client, model, content, tokens, SIDES[side]) for side in order}
        show(console, question, {side: found[side] for side in SIDES})
        equal += found["plain"]["text"] == found["std"]["text"]
        if all(found[side]["each"] for side in SIDES):
            for side in SIDES:
                each[side].append(found[side]["each"])
    said = f"{equal} of {len(questions)} answers equal; "
    if each["std"]:
        said += f"time per token, plain over std: {sum(each['plain']) / sum(each['std']):.2f}x"
    else:
        said += "no answer of more than one token on both sides, so none is timed"
    console.print(said, highlight=False)


if __name__ == "__main__":
    typer.run(main)
