"""Both sides of the comparison, in turns, on the same prompts."""

import base64
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from vllm_std.patches import benchmark
from vllm_std.tools.bench.sides import PLAIN, SIDES, ServerOf, turns
from vllm_std.tools.prompts import Prompt

WITHOUT_STD = {"vllm_xargs": {"std": False}}  # fields of a request that a server with std shall not draft for
Results = dict[str, dict[int, list[dict[str, Any]]]]  # side: {concurrency: what vLLM's benchmark found, by repeat}


@dataclass(frozen=True)
class BenchSettings:
    """concurrency: requests at a time, one run for each; repeats: turns of each side; tokens: most of an answer."""

    prompts: list[Prompt]
    concurrency: tuple[int, ...]
    tokens: int
    temperature: float
    repeats: int


def run(
    settings: BenchSettings, server_of: ServerOf, one_server: bool, at_once: bool, say: Callable[[str], None]
) -> Results:
    """What `vllm bench serve` measures of each side.

    Each server is asked all prompts once before anything is measured, so that both sides find them in their prefix
    caches, as far as those reach. one_server: std's own, which plain requests leave std out on; at_once: whether the
    servers of both sides run all the time; say: told what happens now. Raises ValueError where a request fails.
    """
    conversations = [[inlined(message) for message in prompt.messages] for prompt in settings.prompts]
    results: Results = {side: {concurrency: [] for concurrency in settings.concurrency} for side in SIDES}
    with ExitStack() as stack:
        urls = {side: stack.enter_context(server_of(side)) for side in SIDES} if at_once else {}
        for repeat, side in turns(settings.repeats):
            fields: dict[str, Any] = {"temperature": settings.temperature}
            fields |= WITHOUT_STD if one_server and side == PLAIN else {}
            with nullcontext(urls[side]) if at_once else server_of(side) as url:
                if repeat == 0 or not at_once:
                    say(f"{side}: warming up")
                    benchmark.measure(url, conversations, settings.tokens, max(settings.concurrency), fields)
                for concurrency in settings.concurrency:
                    say(f"{side}: {concurrency} at a time, {repeat + 1} of {settings.repeats}")
                    result = benchmark.measure(url, conversations, settings.tokens, concurrency, fields)
                    _refuse_failures(result, side)
                    results[side][concurrency].append(result)
    return results


def _refuse_failures(result: dict[str, Any], side: str) -> None:
    if result["failed"]:
        reason = next(error for error in result["errors"] if error).strip().splitlines()[-1]
        raise ValueError(f"{result['failed']} of {len(result['errors'])} requests failed ({side}): {reason}")


def inlined(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose video files are in it: a server may not read our files."""
    if isinstance(message["content"], str):
        return message
    return message | {"content": [_inlined_part(part) for part in message["content"]]}


def _inlined_part(part: dict[str, Any]) -> dict[str, Any]:
    url = part.get("video_url", {}).get("url", "")
    if not url.startswith("file://"):
        return part
    data = base64.b64encode(Path(unquote(urlsplit(url).path)).read_bytes()).decode()
    return {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{data}"}}
