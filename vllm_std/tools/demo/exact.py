"""One question, to std with a fixed draft length and to plain vLLM: whether the answers are equal, and the passes."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families

from vllm_std.tools.bench.sides import PLAIN, STD, ServerOf
from vllm_std.tools.demo.ask import Answer, Question, asker

Show = Callable[..., None]  # `typer.echo`, or what says nothing
# Names of the demo for counters of vLLM.
COUNTED = {
    "drafted": "vllm:spec_decode_num_draft_tokens_total",
    "accepted": "vllm:spec_decode_num_accepted_tokens_total",
    "target_passes": "vllm:iteration_tokens_total_count",
}


def compare(
    server_of: ServerOf, question: Question, tokens: int, show: Show, commands: dict[str, str]
) -> dict[str, Any]:
    """What both servers answered and counted, for JSON; commands: that start them, to be shown.

    Raises ValueError where a server does not start.
    """
    show(f"video:    {question.video}\nquestion: {question.text}")
    answers, counts = {}, {}
    for side in (STD, PLAIN):
        show(f"\n$ {commands[side]}")
        with server_of(side) as url:
            answers[side], counts[side] = _ask_and_count(url, question, tokens, show)
    drafted, accepted = counts[STD]["drafted"], counts[STD]["accepted"]
    found = {
        "tokens": answers[STD].tokens,
        **counts[STD],
        "plain_target_passes": counts[PLAIN]["target_passes"],
        "acceptance_rate": round(accepted / drafted, 4) if drafted else None,
        "greedy_equal": answers[STD].text == answers[PLAIN].text,
    }
    return found | ({"answer_is_right": answers[STD].is_right(question)} if question.right else {})


def serve_commands(model: str, std: dict[str, Any]) -> dict[str, str]:
    """By side, as a user would type them; std: options of std."""
    plain = f"vllm serve {Path(model).name}"
    return {PLAIN: plain, STD: f"{plain} --speculative-config '{json.dumps(std)}'"}


def _ask_and_count(url: str, question: Question, tokens: int, show: Show) -> tuple[Answer, dict[str, int]]:
    """(answer, by how much each of COUNTED rose)"""
    before = _counters(url)
    answer = asyncio.run(asker(url)(question, tokens, lambda piece, _: show(piece, nl=False)))
    show("")
    return answer, {name: value - before[name] for name, value in _counters(url).items()}


def _counters(url: str) -> dict[str, int]:
    text = OpenAI(base_url=url, api_key="none").get("/metrics", cast_to=str)
    found = {sample.name: sample.value for family in text_string_to_metric_families(text) for sample in family.samples}
    return {name: int(found.get(metric, 0)) for name, metric in COUNTED.items()}


def sentence(found: dict[str, Any]) -> str:
    equal = "word for word what plain vLLM says" if found["greedy_equal"] else "NOT what plain vLLM says"
    passes = f"{found['tokens']} tokens from {found['target_passes']} passes of the target instead of "
    passes += f"{found['plain_target_passes']}: {found['accepted']} of {found['drafted']} drafts were accepted."
    right = {True: " The answer is right.", False: " The answer is wrong.", None: ""}[found.get("answer_is_right")]
    return f"{passes} The answer is {equal}.{right}"
