"""LoRA: a request's adapter is applied to its draft steps as to its dense pass."""

import pytest
from helpers import Acceptance, std, token_prompts
from lora import make_adapter
from vllm import SamplingParams
from vllm.lora.request import LoRARequest

pytestmark = pytest.mark.engine

PROMPTS = token_prompts([45, 300, 97, 45, 160], seed=3)
LORA = dict(enable_lora=True, max_loras=3, max_lora_rank=8)  # with no slot to spare, vLLM 0.32 on CPU gives it to all


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Who of a batch asks for which adapter: two of them, and requests without one."""
    folder = tmp_path_factory.mktemp("lora")
    one, two = (LoRARequest(str(n), n, str(make_adapter(folder / str(n), seed=n))) for n in (1, 2))
    return [one, None, two, None, one]


def answers(llm, adapters, max_tokens=32):
    params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
    return [list(o.outputs[0].token_ids) for o in llm.generate(PROMPTS, params, use_tqdm=False, lora_request=adapters)]


@pytest.fixture(scope="module")
def expected(engines, models, adapters):
    """What plain vLLM answers, with adapters and without."""
    llm = engines(models("llama"), None, **LORA)
    with_adapters, without = answers(llm, adapters), answers(llm, None)
    assert all((a == b) == (adapter is None) for a, b, adapter in zip(with_adapters, without, adapters))
    return with_adapters, without


@pytest.mark.supports("LoRA, in draft and verify alike")
def test_a_batch_of_adapters(engines, models, adapters, expected):
    llm = engines(models("llama"), std(), **LORA)
    with Acceptance(llm) as seen:
        assert answers(llm, adapters) == expected[0]
    assert 0 < seen.accepted < seen.drafted
    assert answers(llm, None) == expected[1]


@pytest.mark.supports("LoRA, in draft and verify alike")
@pytest.mark.parametrize("proposals", [0, 2])
def test_draft_steps_have_the_adapter_of_their_request(engines, models, adapters, expected, proposals):
    """With a mask that keeps everything, only a wrong adapter could cost a draft."""
    llm = engines(models("llama"), std(top_k=1024, proposals=proposals), **LORA)
    for asked, answered in zip((adapters, None), expected):
        with Acceptance(llm) as seen:
            assert answers(llm, asked) == answered
        assert seen.rate == 1.0
