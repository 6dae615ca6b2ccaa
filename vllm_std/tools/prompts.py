"""Prompts of users: text from JSONL or plain files, questions about videos from folders."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

PromptFiles = Annotated[
    list[Path], typer.Option("--prompts", help='JSONL of {"prompt"} or {"messages"}, or .txt; repeatable')
]
VideoFolders = Annotated[
    list[Path], typer.Option("--videos", help="folder of mp4 files with questions in JSON; repeatable")
]


@dataclass(frozen=True)
class Prompt:
    """messages: as for a chat completion; a video is a `video_url` with a file:// URL.

    answer: the right one, where it is known.
    """

    id: str
    task: str | None
    messages: list[dict[str, Any]]
    answer: str | None = None


def load_prompts(files: list[Path], folders: list[Path]) -> list[Prompt]:
    """All prompts of the files and video folders, in order. Raises ValueError naming what cannot be read."""
    prompts = [prompt for file in files for prompt in from_file(file)]
    prompts += [prompt for folder in folders for prompt in from_videos(folder)]
    if not prompts:
        raise ValueError("there are no prompts: give --prompts FILE or --videos DIR.")
    ids: set[str] = set()
    for prompt in prompts:
        if prompt.id in ids:
            raise ValueError(f"two prompts have the id {prompt.id!r}: give each an id of its own.")
        ids.add(prompt.id)
    return prompts


def from_file(file: Path) -> list[Prompt]:
    """One prompt from a .txt file, or one from each line of JSONL."""
    if not file.is_file():
        raise ValueError(f"--prompts {file} is not a file: give JSONL with a prompt a line, or a .txt file.")
    if file.suffix == ".txt":
        return [Prompt(file.stem, None, user_message(file.read_text()))]
    lines = enumerate(file.read_text().splitlines(), 1)
    return [_from_line(f"{file.stem}:{number}", line, f"{file}:{number}") for number, line in lines if line.strip()]


def _from_line(default_id: str, line: str, where: str) -> Prompt:
    try:
        given = json.loads(line)
        messages = given["messages"] if "messages" in given else user_message(given["prompt"])
    except (json.JSONDecodeError, KeyError, TypeError):
        raise ValueError(f'{where} is not {{"prompt": "..."}} or {{"messages": [...]}} as JSON on one line.') from None
    return Prompt(str(given.get("id", default_id)), given.get("task"), messages, given.get("answer"))


def from_videos(folder: Path) -> list[Prompt]:
    """One prompt for each question in the JSON beside each mp4: {"questions": [{"question", "task", "answer"}]}."""
    videos = sorted(folder.glob("*.mp4"))
    if not videos:
        raise ValueError(f"--videos {folder} holds no *.mp4: give a folder of mp4 files, each with a JSON beside it.")
    return [prompt for video in videos for prompt in _from_video(video)]


def _from_video(video: Path) -> list[Prompt]:
    try:
        questions = json.loads(video.with_suffix(".json").read_text())["questions"]
        asked = [(question["question"], question.get("task"), question.get("answer")) for question in questions]
    except (OSError, json.JSONDecodeError, KeyError, TypeError, AttributeError):
        raise ValueError(f'--videos: {video} has no JSON {{"questions": [{{"question": "..."}}]}} beside it.') from None
    url = {"type": "video_url", "video_url": {"url": video.resolve().as_uri()}}
    return [
        Prompt(f"{video.stem}:{number}", task, user_message([url, {"type": "text", "text": text}]), answer)
        for number, (text, task, answer) in enumerate(asked, 1)
    ]


def user_message(content: str | list) -> list[dict[str, Any]]:
    """A conversation of one message."""
    return [{"role": "user", "content": content}]


def digest(prompts: list[Prompt]) -> str:
    """Says whether two runs ask the same: a few hex digits over ids, tasks and messages."""
    text = json.dumps([(prompt.id, prompt.task, prompt.messages) for prompt in prompts])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
