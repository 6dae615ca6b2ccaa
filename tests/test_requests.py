"""Whatever a request asks for, std gives what plain vLLM gives: all of these run in one batch, beside each other."""

import numpy as np
import pytest
from helpers import Acceptance, std, token_prompts
from vllm import SamplingParams
from vllm.sampling_params import RepetitionDetectionParams, RequestOutputKind, StructuredOutputsParams

pytestmark = pytest.mark.versions

THINK, DONE = "<|object_ref_start|>", "<|object_ref_end|>"
ENGINE = dict(max_num_seqs=16, max_model_len=512)
ENGINE |= dict(reasoning_config={"reasoning_start_str": THINK, "reasoning_end_str": DONE})
PROMPTS = token_prompts([45, 300, 97], seed=11)
EOS = 668
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "ages": {"type": "array", "items": {"type": "integer"}}},
    "required": ["name", "ages"],
    "additionalProperties": False,
}
GRAMMAR = 'root ::= "(" ( root | [0-9] ) ")"'

REQUESTS = {
    "nothing more": {},
    "max_tokens 1": dict(max_tokens=1),
    "max_tokens 2": dict(max_tokens=2),
    "max_tokens 6": dict(max_tokens=6),
    "EOS": dict(ignore_eos=False, logit_bias={EOS: 70.0}),
    "EOS after min_tokens": dict(ignore_eos=False, min_tokens=11, logit_bias={EOS: 90.0}),
    "stop token": dict(stop_token_ids=list(range(100, 160))),
    "stop strings": dict(stop=["a", "e", "7"], include_stop_str_in_output=True),
    "presence penalty": dict(presence_penalty=2.0),
    "frequency penalty": dict(frequency_penalty=2.0),
    "repetition penalty": dict(repetition_penalty=1.8),
    "logit bias": dict(logit_bias={5: 40.0, 300: 35.0}),
    "allowed tokens": dict(allowed_token_ids=list(range(50, 120))),
    "bad words": dict(bad_words=["red", "sign", " a", "1", "2", "3", "e", "o"]),
    "min-p": dict(min_p=0.2),
    "logprobs": dict(logprobs=5),
    "prompt_logprobs": dict(prompt_logprobs=3, logprobs=1),
    "flat logprobs": dict(logprobs=2, flat_logprobs=True),
    "named logprobs": dict(logprob_token_ids=[5, 50, 500]),
    "named logprobs of many tokens": dict(logprob_token_ids=list(range(40, 55)), logprobs=15),
    "top-p": dict(temperature=1.0, top_p=1e-6, seed=1),
    "no text": dict(detokenize=False),
    "special tokens in the text": dict(skip_special_tokens=False, spaces_between_special_tokens=False),
    "output at the end": dict(output_kind=RequestOutputKind.FINAL_ONLY, stream_interval=5),
    "nothing of the prefix cache": dict(skip_reading_prefix_cache=True),
    "an end for repetitions": dict(
        allowed_token_ids=[50, 51, 52], repetition_detection=RepetitionDetectionParams(8, 1, 2)
    ),
    "what this engine does not have": dict(routed_experts_prompt_start=3, watermarking=True),
    "n = 3": dict(n=3, temperature=1.0, top_k=1),
    "JSON schema": dict(structured_outputs=StructuredOutputsParams(json=SCHEMA), ignore_eos=False),
    "regex": dict(structured_outputs=StructuredOutputsParams(regex="(ab|ba){4,12}"), ignore_eos=False),
    "choice": dict(structured_outputs=StructuredOutputsParams(choice=["left", "lower right"]), ignore_eos=False),
    "grammar": dict(structured_outputs=StructuredOutputsParams(grammar=GRAMMAR), ignore_eos=False),
    "JSON object": dict(structured_outputs=StructuredOutputsParams(json_object=True), ignore_eos=False),
    "no drafts for it": dict(extra_args={"std": False}),
}
SHOWS = {
    "requests that end inside a draft": ["max_tokens 1", "max_tokens 2", "max_tokens 6", "EOS", "EOS after min_tokens",
                                         "stop token", "stop strings"],
    "penalties": ["presence penalty", "frequency penalty", "repetition penalty"],
    "logit bias, allowed tokens, bad words": ["logit bias", "allowed tokens", "bad words"],
    "min-p": ["min-p"],
    "logprobs and prompt_logprobs": ["logprobs", "prompt_logprobs", "flat logprobs", "named logprobs",
                                     "named logprobs of many tokens"],
    "n > 1 and seeds": ["n = 3"],
    "structured outputs (xgrammar)": ["JSON schema", "regex", "choice", "grammar", "JSON object"],
    "leaving std out for one request": ["no drafts for it"],
}  # fmt: skip
FEATURE = {name: feature for feature, names in SHOWS.items() for name in names}
CHANGES_NOTHING = {
    "nothing more", "min-p", "n = 3", "no drafts for it", "top-p", "no text", "special tokens in the text",
    "output at the end", "nothing of the prefix cache", "what this engine does not have",
    *SHOWS["logprobs and prompt_logprobs"],
}  # fmt: skip
# Fields of SamplingParams that are in none of REQUESTS, and why; one that a later vLLM adds is in neither.
ELSEWHERE = {
    "_all_stop_token_ids": "vLLM sets it itself", "_bad_words_token_ids": "vLLM sets it itself",
    "_eos_token_id": "vLLM sets it itself", "_watermarking_skipped": "vLLM sets it itself",
    "prompt_logprob_start": "below", "prompt_logprob_token_ids": "below: as many rows as the prompt has",
    "output_text_buffer_length": "vLLM sets it itself", "skip_clone": "of the object, not of the request",
    "thinking_token_budget": "below: for prompts that begin to think",
    "trace_decode_token_ids": "vLLM refuses it with any drafts: below",
}  # fmt: skip


def ask(llm) -> dict:
    """name: what a request of each kind got, for each of the prompts."""
    params = [SamplingParams(**dict(temperature=0, max_tokens=32, ignore_eos=True) | p) for p in REQUESTS.values()]
    asked = [(prompt, each) for each in params for prompt in PROMPTS]
    outputs = llm.generate(*map(list, zip(*asked)), use_tqdm=False)
    return {name: outputs[len(PROMPTS) * i :][: len(PROMPTS)] for i, name in enumerate(REQUESTS)}


@pytest.fixture(scope="module")
def expected(engines, models):
    return ask(engines(models("llama"), None, **ENGINE))


def named_in_the_prompt(llm):
    """Logprobs of two tokens at each place of a prompt, from the tenth on."""
    rows = [[row, 2 * row] for row in range(5, 39)]
    named = SamplingParams(max_tokens=4, prompt_logprob_token_ids=np.array(rows), prompt_logprob_start=10)
    (found,) = llm.generate(PROMPTS[0], named, use_tqdm=False)
    return np.array(found.prompt_token_id_logprobs)


@pytest.fixture(scope="module")
def in_the_prompt(engines, models):
    return named_in_the_prompt(engines(models("llama"), None, **ENGINE))


@pytest.mark.supports("logprobs and prompt_logprobs")
@pytest.mark.engine
def test_named_logprobs_of_a_prompt_are_plain_vllms(engines, models, expected, in_the_prompt, got):
    ours = named_in_the_prompt(engines(models("llama"), std(), **ENGINE))
    assert ours.shape == in_the_prompt.shape and np.allclose(ours, in_the_prompt, atol=1e-3)


@pytest.fixture(scope="module")
def got(engines, models, expected, in_the_prompt, thought):
    llm = engines(models("llama"), std(), **ENGINE)
    with Acceptance(llm) as seen:
        answers = ask(llm)
    assert 0 < seen.accepted < seen.drafted
    return answers


def completions(outputs) -> list:
    return [(c.token_ids, c.text, c.finish_reason, c.stop_reason) for out in outputs for c in out.outputs]


def each_request():
    return [
        pytest.param(name, marks=pytest.mark.supports(FEATURE[name]) if name in FEATURE else ()) for name in REQUESTS
    ]


@pytest.mark.parametrize("name", each_request())
@pytest.mark.engine
def test_tokens_text_and_the_reason_to_end_are_plain_vllms(expected, got, name):
    assert completions(got[name]) == completions(expected[name])
    same = [c[0] for c in completions(expected[name])] == [c[0] for c in completions(expected["nothing more"])]
    assert same == (name in CHANGES_NOTHING) or name == "n = 3", "what was asked for made a difference"


@pytest.mark.unit
def test_every_field_of_a_request_is_looked_at():
    asked = {field for request in REQUESTS.values() for field in request} | {"temperature"}
    assert asked | set(ELSEWHERE) == set(SamplingParams.__struct_fields__)


@pytest.mark.engine
def test_what_vllm_refuses_with_drafts_is_named(engines, models):
    llm = engines(models("llama"), std(), **ENGINE)
    with pytest.raises(ValueError, match="trace_decode_token_ids"):
        llm.generate(PROMPTS[:1], SamplingParams(trace_decode_token_ids=[5, 6]), use_tqdm=False)


@pytest.mark.supports("logprobs and prompt_logprobs")
@pytest.mark.parametrize("name", SHOWS["logprobs and prompt_logprobs"])
@pytest.mark.engine
def test_logprobs_are_plain_vllms(expected, got, name):
    for ours, theirs in zip(got[name], expected[name]):
        assert (ours.prompt_logprobs is None) == (name != "prompt_logprobs")
        pairs = [*zip(ours.outputs[0].logprobs, theirs.outputs[0].logprobs)]
        pairs += zip(ours.prompt_logprobs or [], theirs.prompt_logprobs or [])
        for our, their in pairs:
            if their is None:  # of the first token of a prompt
                assert our is None
                continue
            assert our.keys() == their.keys()
            for token in their:
                assert our[token].logprob == pytest.approx(their[token].logprob, abs=1e-3)
                assert our[token].rank == their[token].rank


def thinking(llm) -> list[list[int]]:
    """Answers of requests that may think for a few tokens, or as long as they like, side by side."""
    (begin,) = llm.get_tokenizer().encode(THINK, add_special_tokens=False)
    prompts = [{"prompt_token_ids": prompt["prompt_token_ids"] + [begin]} for prompt in PROMPTS]
    (end,) = llm.get_tokenizer().encode(DONE, add_special_tokens=False)
    unwilling = dict(temperature=0, max_tokens=24, ignore_eos=True, logit_bias={end: -100.0})
    budgets = [SamplingParams(thinking_token_budget=budget, **unwilling) for budget in (0, 1, 5, 10, None)]
    asked = [(prompt, budget) for prompt in prompts for budget in budgets]
    return [list(out.outputs[0].token_ids) for out in llm.generate(*map(list, zip(*asked)), use_tqdm=False)]


@pytest.fixture(scope="module")
def thought(engines, models):
    return thinking(engines(models("llama"), None, **ENGINE))


@pytest.mark.supports("thinking budgets")
@pytest.mark.engine
def test_thinking_ends_where_plain_vllms_does(engines, models, expected, in_the_prompt, thought, got):
    llm = engines(models("llama"), std(), **ENGINE)
    (end,) = llm.get_tokenizer().encode(DONE, add_special_tokens=False)
    assert thinking(llm) == thought
    assert all(end in answer for answer in thought[:4]) and end not in thought[4], "a budget makes a difference"


@pytest.mark.supports("n > 1 and seeds")
@pytest.mark.engine
def test_seeds_give_the_same_answer_again(engines, models, got):
    """Alone, and in a batch with others; and n answers to one prompt differ."""
    llm = engines(models("llama"), std(), **ENGINE)
    params = [SamplingParams(temperature=0.9, min_p=0.02, seed=seed, max_tokens=16, n=2) for seed in (1, 2, 1)]
    first = completions(llm.generate([PROMPTS[0]] * 3, params, use_tqdm=False))
    again = [completions(llm.generate(PROMPTS[0], each, use_tqdm=False)) for each in params]
    assert first == [answer for answers in again for answer in answers]
    assert first[:2] == first[4:] and first[0] != first[1] and first[:2] != first[2:4]
