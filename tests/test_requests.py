"""Whatever a request asks for, std gives what plain vLLM gives: all of these run in one batch, beside each other."""

import pytest
from conftest import Acceptance, std, token_prompts
from vllm import SamplingParams
from vllm.sampling_params import StructuredOutputsParams

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
    "logprobs and prompt_logprobs": ["logprobs", "prompt_logprobs"],
    "n > 1 and seeds": ["n = 3"],
    "structured outputs (xgrammar)": ["JSON schema", "regex", "choice", "grammar", "JSON object"],
    "leaving std out for one request": ["no drafts for it"],
}  # fmt: skip
FEATURE = {name: feature for feature, names in SHOWS.items() for name in names}
CHANGES_NOTHING = {"nothing more", "min-p", "logprobs", "prompt_logprobs", "n = 3", "no drafts for it"}


def ask(llm) -> dict:
    """name: what a request of each kind got, for each of the prompts."""
    params = [SamplingParams(**dict(temperature=0, max_tokens=32, ignore_eos=True) | p) for p in REQUESTS.values()]
    asked = [(prompt, each) for each in params for prompt in PROMPTS]
    outputs = llm.generate(*map(list, zip(*asked)), use_tqdm=False)
    return {name: outputs[len(PROMPTS) * i :][: len(PROMPTS)] for i, name in enumerate(REQUESTS)}


@pytest.fixture(scope="module")
def expected(engines, models):
    return ask(engines(models("llama"), None, max_num_seqs=16, max_model_len=512))


@pytest.fixture(scope="module")
def got(engines, models, expected):
    llm = engines(models("llama"), std(), max_num_seqs=16, max_model_len=512)
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
def test_tokens_text_and_the_reason_to_end_are_plain_vllms(expected, got, name):
    assert completions(got[name]) == completions(expected[name])
    same = [c[0] for c in completions(expected[name])] == [c[0] for c in completions(expected["nothing more"])]
    assert same == (name in CHANGES_NOTHING) or name == "n = 3", "what was asked for made a difference"


@pytest.mark.supports("logprobs and prompt_logprobs")
@pytest.mark.parametrize("name", ["logprobs", "prompt_logprobs"])
def test_logprobs_are_plain_vllms(expected, got, name):
    for ours, theirs in zip(got[name], expected[name]):
        assert (ours.prompt_logprobs is None) == (name == "logprobs")
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


@pytest.mark.supports("n > 1 and seeds")
def test_seeds_give_the_same_answer_again(engines, models, got):
    """Alone, and in a batch with others; and n answers to one prompt differ."""
    llm = engines(models("llama"), std(), max_num_seqs=16, max_model_len=512)
    params = [SamplingParams(temperature=0.9, min_p=0.02, seed=seed, max_tokens=16, n=2) for seed in (1, 2, 1)]
    first = completions(llm.generate([PROMPTS[0]] * 3, params, use_tqdm=False))
    again = [completions(llm.generate(PROMPTS[0], each, use_tqdm=False)) for each in params]
    assert first == [answer for answers in again for answer in answers]
    assert first[:2] == first[4:] and first[0] != first[1] and first[:2] != first[2:4]
