"""Every field of every text request that vLLM's server takes: with std the answer is plain vLLM's, or its refusal."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from helpers import std
from servers import serve
from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

TEXT = "Clock 467: small orange diamond, lower left, navy, sign 472. Clock 466: small cyan heart, upper right. " * 3
CHAT = [{"role": "user", "content": TEXT}]
GREEDY = {"model": "demo", "temperature": 0}
TOOL = {"name": "look", "description": "", "parameters": {"type": "object", "properties": {"at": {"type": "integer"}}}}
PROTOCOLS = {
    "/v1/completions": (CompletionRequest, GREEDY | {"prompt": TEXT, "max_tokens": 16, "ignore_eos": True}),
    "/v1/chat/completions": (ChatCompletionRequest, GREEDY | {"messages": CHAT, "max_tokens": 16, "ignore_eos": True}),
    "/v1/responses": (ResponsesRequest, GREEDY | {"input": TEXT, "max_output_tokens": 16, "ignore_eos": True}),
    "/v1/messages": (AnthropicMessagesRequest, GREEDY | {"messages": CHAT, "max_tokens": 16}),
}
# What is sent for each field: by all protocols that have it, or by one. Plain vLLM may refuse it; then so must std.
VALUES = {
    "add_generation_prompt": False, "add_special_tokens": False, "allowed_token_ids": list(range(50, 120)),
    "background": True, "bad_words": ["red", "a", "e", "1"], "cache_salt": "salt", "chat_template": "{{ messages }}",
    "chat_template_kwargs": {"enable_thinking": False}, "continue_final_message": True, "documents": [{"text": "a"}],
    "echo": True, "ec_transfer_params": {}, "enable_response_messages": True, "frequency_penalty": 1.5,
    "ignore_eos": False, "include": ["message.output_text.logprobs"], "include_reasoning": False,
    "include_stop_str_in_output": True, "input": "Clock", "instructions": "Be brief.", "kv_transfer_params": {},
    "length_penalty": 2.0, "logit_bias": {"50": 40.0, "300": 35.0}, "logprob_token_ids": [5, 50, 500],
    "logprobs": {"/v1/completions": 3, "/v1/chat/completions": True}, "max_completion_tokens": 7,
    "max_output_tokens": 7, "max_tokens": 7, "max_tool_calls": 1, "media_io_kwargs": {"video": {"num_frames": 2}},
    "messages": [{"role": "user", "content": "Clock"}], "metadata": {"a": "b"}, "min_p": 0.99, "min_tokens": 3,
    "mm_payload": "none", "mm_processor_kwargs": {}, "model": "another", "n": 2, "output_config": {"effort": "low"},
    "parallel_tool_calls": False, "presence_penalty": 1.5, "previous_input_messages": [],
    "previous_response_id": "resp_none", "priority": 1, "prompt": {"/v1/completions": [[5, 6, 7], [8, 9]],
                                                                   "/v1/responses": {"id": "prompt"}},
    "prompt_cache_key": "key", "prompt_cache_options": {}, "prompt_cache_retention": "24h", "prompt_embeds": "",
    "prompt_logprobs": 2, "reasoning": {"effort": "low"}, "reasoning_effort": "low",
    "repetition_detection": {"max_pattern_size": 8, "min_pattern_size": 1, "min_count": 2}, "repetition_penalty": 1.5,
    "request_id": "mine", "response_format": {"type": "json_object"}, "return_mm_kwargs": True,
    "return_prompt_text": True, "return_token_ids": True, "return_token_offsets": True,
    "return_tokens_as_token_ids": True, "return_weight_versions": True, "routed_experts_prompt_start": 2,
    "safety_identifier": "me", "seed": 7, "service_tier": "flex", "session_id": "mine", "skip_special_tokens": False,
    "spaces_between_special_tokens": False, "stop": ["e", "7"], "stop_sequences": ["e", "7"],
    "stop_token_ids": list(range(100, 160)), "store": False, "stream_interval": 3,
    "structured_outputs": {"regex": "(ab|ba){4,12}"}, "suffix": "end", "system": "Be brief.", "temperature": 1.0,
    "text": {"format": {"type": "text"}}, "thinking": {"type": "disabled"}, "thinking_token_budget": 2,
    "tool_choice": {"/v1/messages": {"type": "auto"}, "": "none"},
    "tools": {"/v1/chat/completions": [{"type": "function", "function": TOOL}],
              "/v1/responses": [{"type": "function", **TOOL}],
              "/v1/messages": [{"name": "look", "input_schema": TOOL["parameters"]}]},
    "top_k": 1, "top_logprobs": 3, "top_p": 1e-6, "truncate_prompt_tokens": 9, "truncation": "auto",
    "truncation_side": "left", "use_beam_search": True, "user": "me", "vllm_xargs": {"std": False},
    "watermarking": True,
}  # fmt: skip
WITH = {  # what a field needs beside it to make a difference
    "echo": {"logprobs": 1}, "logprob_token_ids": {"logprobs": 1}, "min_p": {"temperature": 1.0},
    "temperature": {"top_k": 1}, "top_k": {"temperature": 1.0}, "top_p": {"temperature": 1.0},
    "top_logprobs": {"logprobs": True},
    "use_beam_search": {"n": 2}, "min_tokens": {"stop_token_ids": list(range(50, 170)), "ignore_eos": False},
    "truncation_side": {"truncate_prompt_tokens": 9}, "include_stop_str_in_output": {"stop": ["e", "7"]},
    "repetition_detection": {"allowed_token_ids": [50, 51, 52]}, "stream_interval": {"stream": True},
    "continue_final_message": {"add_generation_prompt": False},
}  # fmt: skip
STREAMED = ("stream", "stream_options")  # compared by what all pieces together say
CHANGE = {"id", "created", "created_at", "completed_at", "request_id", "item_id", "system_fingerprint", "msg_id"}


def value_for(path: str, field: str):
    """Raises KeyError for a field that nobody has thought of, as a later vLLM may add one."""
    value = VALUES[field]
    by_path = isinstance(value, dict) and any(key.startswith("/v1") for key in value)
    return value.get(path, value.get("")) if by_path else value


def asked() -> Iterator[tuple[str, str, dict]]:
    """(path, field, body)"""
    for path, (protocol, body) in PROTOCOLS.items():
        yield path, "nothing more", body
        for field in protocol.model_fields:
            if field in STREAMED:
                yield path, field, body | {"stream": True}
                continue
            beside = {name: value for name, value in WITH.get(field, {}).items() if name in protocol.model_fields}
            if path != "/v1/chat/completions" and beside.get("logprobs") is True:
                beside.pop("logprobs")
            yield path, field, body | beside | {field: value_for(path, field)}
    for whole in (True, False):
        body = {"model": "demo", "query": TEXT, "items": [" red", " blue", " 467"], "label_token_ids": [50, 51, 300]}
        yield "/generative_scoring", f"apply_softmax {whole}", body | {"apply_softmax": whole}


ASKED = {(path, field): body for path, field, body in asked()}


def ask(url: str, path: str, body: dict):
    reply = requests.post(f"{url}{path}", json=body, timeout=120)
    if body.get("stream") and reply.ok:
        return reply.status_code, "".join(pieces(reply.text))
    return reply.status_code, reply.json()


def pieces(stream: str) -> Iterator[str]:
    """The text of server-sent events, whatever the protocol."""
    for line in stream.splitlines():
        if not line.startswith("data: {"):
            continue
        event = json.loads(line.removeprefix("data: "))
        for choice in event.get("choices", ()):
            yield choice.get("text") or choice.get("delta", {}).get("content") or ""
        delta = event.get("delta", "")
        yield delta if isinstance(delta, str) else delta.get("text") or ""


@pytest.fixture(scope="module")
def answers(models, tmp_path_factory) -> dict[str, dict]:
    """{side: {(path, field): (status, body)}}; eight at a time, so that drafts of some are verified beside others."""
    found = {}
    flags = ["--max-model-len", "1024", "--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    flags += ["--distributed-executor-backend", "uni"]  # and the variable: one process less
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        for side, more in {"plain": [], "std": ["--speculative-config", json.dumps(std())]}.items():
            log = tmp_path_factory.mktemp("protocols") / side
            with serve(str(models("llama")), log, *flags, *more) as url, ThreadPoolExecutor(8) as clients:
                replies = clients.map(lambda body: ask(url, body[0][0], body[1]), ASKED.items())
                found[side] = dict(zip(ASKED, replies))
    return found


def alike(ours, theirs, path: str = "") -> None:
    """Equal but for names of requests and times; numbers within a thousandth."""
    if isinstance(theirs, dict):
        assert set(ours) == set(theirs), path
        for key in set(theirs) - CHANGE:
            alike(ours[key], theirs[key], f"{path}.{key}")
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs), path
        for number, pair in enumerate(zip(ours, theirs)):
            alike(*pair, f"{path}[{number}]")
    elif isinstance(theirs, float):
        assert ours == pytest.approx(theirs, abs=1e-3), path
    else:
        assert ours == theirs, path


@pytest.mark.supports("every field of completion, chat, responses and messages requests, generative scoring")
@pytest.mark.parametrize("path, field", ASKED)
def test_the_answer_is_plain_vllms(answers, path, field):
    (status, ours), (expected, theirs) = answers["std"][path, field], answers["plain"][path, field]
    assert status == expected < 500, ours
    alike(ours, theirs)


def test_most_fields_are_answered(answers):
    """So that a mistake in what is sent does not pass for a refusal."""
    refused = [key for key in ASKED if answers["plain"][key][0] >= 400]
    assert len(refused) < len(ASKED) / 5, refused
