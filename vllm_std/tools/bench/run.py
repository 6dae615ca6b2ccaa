"""Both sides of the comparison, in turns, on the same prompts."""

import base64
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from vllm_std.tools.prompts import Prompt

SIDES = ("plain", "std")
LEAVE_OUT = {"vllm_xargs": {"std": False}}


@dataclass(frozen=True)
class Load:
    """concurrency: requests at a time, one run for each; repeats: turns of each side; tokens: most of an answer."""

    prompts: list[Prompt]
    concurrency: tuple[int, ...]
    tokens: int
    temperature: float
    repeats: int


Found = dict[str, dict[int, list[dict[str, Any]]]]
Server = Callable[[str], AbstractContextManager[str]]  # side: base URL of a server, as long as it is needed


def own_servers(model: str, engine: dict[str, Any], std: dict[str, Any]) -> Server:
    """A server for each side: plain vLLM does not load the plugin."""
    from vllm_std.patches import benchmark as seam

    def server(side: str):
        return seam.served(model, engine | ({"speculative_config": {"method": "std"} | std} if side == "std" else {}))

    return server


def running_server(url: str) -> Server:
    return lambda side: nullcontext(url.rstrip("/"))


def run(load: Load, server: Server, one_server: bool, at_once: bool, say: Callable[[str], None]) -> Found:
    """{side: {concurrency: what vLLM's benchmark found in each repeat}}.

    The sides take turns, and so does which of them is the first. Each server is asked all prompts once before anything
    is measured, so that both sides find them in their prefix caches, as far as those reach. one_server: std's own,
    which plain requests leave std out on; at_once: whether the servers of both sides run all the time.
    """
    from vllm_std.patches import benchmark as seam

    conversations = [[inlined(message) for message in prompt.messages] for prompt in load.prompts]
    found: Found = {side: {concurrency: [] for concurrency in load.concurrency} for side in SIDES}
    with ExitStack() as stack:
        urls = {side: stack.enter_context(server(side)) for side in SIDES} if at_once else {}
        for repeat, side in in_turns(load.repeats):
            body = {"temperature": load.temperature} | (LEAVE_OUT if one_server and side == "plain" else {})
            with nullcontext(urls[side]) if at_once else server(side) as url:
                if repeat == 0 or not at_once:
                    say(f"{side}: warming up")
                    seam.measure(url, conversations, load.tokens, max(load.concurrency), body)
                for concurrency in load.concurrency:
                    say(f"{side}: {concurrency} at a time, {repeat + 1} of {load.repeats}")
                    result = seam.measure(url, conversations, load.tokens, concurrency, body)
                    _refuse_failures(result, side)
                    found[side][concurrency].append(result)
    return found


def in_turns(repeats: int) -> Iterator[tuple[int, str]]:
    """(repeat, side): so many turns of each side; which of them is the first changes."""
    for repeat in range(repeats):
        for side in SIDES if repeat % 2 == 0 else reversed(SIDES):
            yield repeat, side


def _refuse_failures(result: dict[str, Any], side: str) -> None:
    if result["failed"]:
        reason = next(error for error in result["errors"] if error).strip().splitlines()[-1]
        raise ValueError(f"{result['failed']} of {len(result['errors'])} requests failed ({side}): {reason}")


def inlined(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose video files are in it: a server may read no files of ours."""
    if isinstance(message["content"], str):
        return message
    return message | {"content": [_inlined(part) for part in message["content"]]}


def _inlined(part: dict[str, Any]) -> dict[str, Any]:
    url = part.get("video_url", {}).get("url", "")
    if not url.startswith("file://"):
        return part
    data = base64.b64encode(Path(unquote(urlsplit(url).path)).read_bytes()).decode()
    return {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{data}"}}
