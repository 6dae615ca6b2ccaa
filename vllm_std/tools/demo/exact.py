"""One question, to std with a fixed draft length and to plain vLLM: whether the answers are equal, and the passes."""

import asyncio
import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from vllm_std.tools.bench.run import Server
from vllm_std.tools.demo.ask import Answer, Question, asker

COUNTED = {
    "drafted": "vllm:spec_decode_num_draft_tokens_total",
    "accepted": "vllm:spec_decode_num_accepted_tokens_total",
    "target_passes": "vllm:iteration_tokens_total_count",
}


def compare(server: Server, model: str, std: dict[str, Any], question: Question, tokens: int, show) -> dict[str, Any]:
    """What both servers answered and counted; model, std: its name and std's options, to be shown.

    Raises ValueError where a server does not start.
    """
    show(f"video:    {question.video}\nquestion: {question.text}")
    show(f"\n$ vllm serve {Path(model).name} --speculative-config '{json.dumps(std)}'")
    drafted, counted = _asked(server("std"), question, tokens, show)
    show(f"\n$ vllm serve {Path(model).name}")
    plain, passes = _asked(server("plain"), question, tokens, show)
    rate = round(counted["accepted"] / counted["drafted"], 4) if counted["drafted"] else None
    found: dict[str, Any] = {"tokens": drafted.tokens} | counted | {"plain_target_passes": passes["target_passes"]}
    found |= {"acceptance_rate": rate, "greedy_equal": drafted.text == plain.text}
    return found | ({"answer_is_right": drafted.is_right(question)} if question.right else {})


def _asked(
    running: AbstractContextManager[str], question: Question, tokens: int, show
) -> tuple[Answer, dict[str, int]]:
    """(answer, by how much each of COUNTED rose)"""
    with running as url:
        before = _counters(url)
        answer = asyncio.run(asker(url)(question, tokens, lambda piece, _: show(piece, nl=False)))
        show("")
        return answer, {metric: value - before[metric] for metric, value in _counters(url).items()}


def _counters(url: str) -> dict[str, int]:
    from openai import OpenAI
    from prometheus_client.parser import text_string_to_metric_families

    text = OpenAI(base_url=url, api_key="none").get("/metrics", cast_to=str)
    found = {sample.name: sample.value for family in text_string_to_metric_families(text) for sample in family.samples}
    return {name: int(found.get(metric, 0)) for name, metric in COUNTED.items()}


def sentence(found: dict[str, Any]) -> str:
    equal = "word for word what plain vLLM says" if found["greedy_equal"] else "NOT what plain vLLM says"
    passes = f"{found['tokens']} tokens from {found['target_passes']} passes of the target instead of "
    passes += f"{found['plain_target_passes']}: {found['accepted']} of {found['drafted']} drafts were accepted."
    right = {True: " The answer is right.", False: " The answer is wrong.", None: ""}[found.get("answer_is_right")]
    return f"{passes} The answer is {equal}.{right}"
