"""A question about a video, as a client of an OpenAI-compatible server asks it, and the answer as it comes."""

import base64
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI

from vllm_std.patches import benchmark

USAGE: Any = {"include_usage": True, "continuous_usage_stats": True}  # of a stream; the second is vLLM's own


@dataclass(frozen=True)
class Question:
    """right: the answer, where it is known."""

    video: Path
    text: str
    right: str | None = None


@dataclass(frozen=True)
class Answer:
    """tokens: as many as the server counted."""

    text: str
    tokens: int

    def is_right(self, question: Question) -> bool:
        return question.right is not None and self.text == question.right


Ask = Callable[..., Coroutine[Any, Any, Answer]]  # `ask` without url and model


def asker(url: str) -> Ask:
    """`ask` for the server there. Raises ValueError where none answers."""
    return partial(ask, url, benchmark.model_of(url)[0])


async def ask(
    url: str, model: str, question: Question, tokens: int, on_text: Callable[[str, int], None], known: bool = False
) -> Answer:
    """Ask greedily, for at most so many tokens; on_text: told of each piece of text, and of the tokens so far.

    known: the server has been asked about this video and keeps it, so that it is only named.
    """
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        stream = await client.chat.completions.create(
            model=model, messages=_messages(question, known),
            temperature=0, max_tokens=tokens, stream=True, stream_options=USAGE,
        )  # fmt: skip
        text = ""
        count = 0
        async for chunk in stream:
            piece = (chunk.choices[0].delta.content or "") if chunk.choices else ""
            text += piece
            count = chunk.usage.completion_tokens if chunk.usage else count
            on_text(piece, count)
    return Answer(text, count)


def _messages(question: Question, known: bool) -> Any:
    """vLLM keeps a video by its uuid."""
    video: dict[str, str] = {}
    if not known:
        video["url"] = f"data:video/mp4;base64,{base64.b64encode(question.video.read_bytes()).decode()}"
    named = {"type": "video_url", "video_url": video, "uuid": question.video.name}
    return [{"role": "user", "content": [named, {"type": "text", "text": question.text}]}]
