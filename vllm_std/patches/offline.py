"""Runs conversations on an `LLM`, whose prompts (their videos too) are processed once for all runs."""

from collections import Counter
from typing import Any

from vllm import RequestOutput
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import RequestOutputKind

from vllm_std.patches.wrapping import Patch

OFFLINE = Patch(
    name="offline",
    replaces=(
        "calls LLM._preprocess_chat, _preprocess_cmpl and _render_and_run_requests; reads LLM.llm_engine and "
        "request_counter, and RequestStateStats.queued_ts and first_token_ts; only "
        "`vllm-std acceptance` and scripts that measure use it"
    ),
    why="LLM.generate takes no processed videos, and LLM.chat processes them again in each run",
    upstream="none",
    remove_when="LLM has a public way to run conversations whose videos are processed already",
)


def render(llm, messages: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Engine input of a conversation (`prompt_token_ids`, ...). Raises ValueError, naming it, where vLLM refuses."""
    try:
        if llm.get_tokenizer().chat_template is None:
            return llm._preprocess_cmpl([messages[-1]["content"]])[0]
        return llm._preprocess_chat([messages])[0]
    except VLLMValidationError as error:
        raise ValueError(f"prompt {name}: {error}") from None


def generate(llm, inputs: list[dict[str, Any]], params: list) -> list:
    """One finished RequestOutput for each of what `render` gave, in order. `LLM.generate` would drop the videos."""
    return llm._render_and_run_requests(iter(inputs), params, RequestOutput, use_tqdm=False)


def one_by_one(llm, inputs: list[dict[str, Any]], params: list, apart: int) -> list:
    """As `generate`; the next request comes when those before it have given `apart` more tokens."""
    engine, outputs = llm.llm_engine, []
    tokens: Counter[str] = Counter()  # of each request so far
    waiting = list(zip(inputs, params))[::-1]
    while waiting or engine.has_unfinished_requests():
        if waiting and tokens.total() >= apart * (len(inputs) - len(waiting)):
            given, wanted = waiting.pop()
            wanted.output_kind = RequestOutputKind.CUMULATIVE
            engine.add_request(str(next(llm.request_counter)), given, wanted)
        for output in engine.step():
            tokens[output.request_id] = len(output.outputs[0].token_ids)
            if output.finished:
                outputs.append(output)
    return sorted(outputs, key=lambda output: int(output.request_id))


def seconds_to_first_token(output: RequestOutput) -> float:
    """From a request's arrival in the scheduler on. Its arrival at the `LLM` would be that of `render`, long ago."""
    return output.metrics.first_token_ts - output.metrics.queued_ts
