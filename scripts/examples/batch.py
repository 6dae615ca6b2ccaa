"""Asks one question about each mp4 of a folder, offline, and writes a line of JSON for each as it is answered.

    python scripts/examples/batch.py clips --model Qwen/Qwen2.5-VL-7B-Instruct --out answers.jsonl

Interrupted, it goes on where it was: videos that have an answer in the file are not asked again. A video that cannot be
read gets a line with its error, and is tried again in the next run.
"""

import json
import os
from collections import deque
from pathlib import Path
from typing import Annotated

os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

import typer  # noqa: E402
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: E402


def answered(out: Path) -> set[str]:
    """Videos that have an answer; a line that an interruption cut short is taken off the file."""
    whole = [line for line in (out.read_bytes().splitlines(True) if out.exists() else []) if line.endswith(b"\n")]
    rows = [json.loads(line) for line in whole]
    kept = [line for line, row in zip(whole, rows) if "error" not in row]
    if out.exists():
        out.write_bytes(b"".join(kept))
    return {row["video"] for row in rows if "error" not in row}


def messages(video: Path, question: str) -> list[dict]:
    content = [{"type": "video_url", "video_url": {"url": video.resolve().as_uri()}}]
    return [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]


def rows(llm, videos: list[Path], question: str, tokens: int, at_once: int):
    """Yield a row for each video, in the order in which they are done; `at_once` are read and in flight."""
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=tokens)
    waiting, asked = deque(videos), {}
    while waiting or asked:
        while waiting and len(asked) < at_once:
            video = waiting.popleft()
            try:
                (request,) = llm.enqueue_chat([messages(video, question)], params, use_tqdm=False)
                asked[request.split("-")[0]] = video  # outputs leave out what vLLM appends to tell engines apart
            except Exception as error:  # whatever a decoder may say of a file; the other videos go on
                yield {"video": video.name, "error": str(error).strip().splitlines()[0] if str(error) else repr(error)}
        for output in llm.llm_engine.step() if asked else ():  # without a request a step waits for one
            if output.finished:
                answer = output.outputs[0]
                found = {"video": asked.pop(output.request_id).name, "answer": answer.text}
                found |= {"finish_reason": answer.finish_reason, "prompt_tokens": len(output.prompt_token_ids)}
                yield found | {"tokens": len(answer.token_ids)}


def main(
    folder: Annotated[Path, typer.Argument(help="of mp4 files", exists=True, file_okay=False)],
    model: Annotated[str, typer.Option(help="folder or hub name of a video model")],
    question: Annotated[str, typer.Option(help="about each video")] = "Describe what happens in the video.",
    out: Annotated[Path, typer.Option(help="JSONL, added to where it is there")] = Path("answers.jsonl"),
    tokens: Annotated[int, typer.Option(help="most tokens of an answer")] = 512,
    at_once: Annotated[int, typer.Option(help="videos in flight")] = 16,
    engine: Annotated[str, typer.Option(help="arguments of vLLM, as JSON: '{\"max_model_len\": 32768}'")] = "{}",
) -> None:
    done, videos = answered(out), sorted(folder.glob("*.mp4"))
    left = [video for video in videos if video.name not in done]
    typer.echo(f"{len(videos)} videos, {len(videos) - len(left)} answered before.", err=True)
    if not left:
        return
    from vllm import LLM

    options = {"spec_method": "std", "max_num_seqs": at_once, "allowed_local_media_path": str(folder.resolve())}
    llm = LLM(model=model, **options | json.loads(engine))
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    failed = 0
    with Progress(*columns) as progress, out.open("a") as file:
        task = progress.add_task("answering", total=len(videos), completed=len(videos) - len(left))
        for row in rows(llm, left, question, tokens, at_once):
            file.write(json.dumps(row) + "\n")
            file.flush()
            failed += "error" in row
            progress.advance(task)
    typer.echo(f"Written to {out}; {failed} could not be read.", err=True)
    raise typer.Exit(failed > 0)


if __name__ == "__main__":
    typer.run(main)
