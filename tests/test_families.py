"""More families of text models, mixtures of experts among them: greedy tokens with std are plain vLLM's."""

import pytest
from helpers import Acceptance, greedy, std, token_prompts
from tiny_models import EXPERTS, MORE_TEXT

pytestmark = pytest.mark.engine

SHORT, LONG = token_prompts([1, 45, 60], seed=9), token_prompts([300, 97, 620], seed=9)


def compare(engines, plain, folder) -> None:
    """A mask of 96 tokens keeps all of a short context, where drafts are the target's own words, and part of others."""
    expected = plain(folder, SHORT + LONG, 24)
    assert len(set(map(tuple, expected))) == 6 and len(set(expected[3])) > 4, "what is said depends on what was read"
    llm = engines(folder, std())
    with Acceptance(llm) as seen:
        assert greedy(llm, SHORT, 24) == expected[:3]
    assert seen.rate == 1.0
    with Acceptance(llm) as seen:
        assert greedy(llm, LONG, 24) == expected[3:]
    assert 0 < seen.accepted < seen.drafted


@pytest.mark.supports("text models: GPT-2, OPT, Phi-3, Granite, GPT-NeoX, GLM-4 architectures")
@pytest.mark.parametrize("name", MORE_TEXT)
def test_text_models(engines, plain, models, name):
    """Learned positions, fused projections, multipliers, rotary halves; GPT-NeoX is transformers' own code in vLLM."""
    compare(engines, plain, models(name))


@pytest.mark.supports("mixtures of experts: Qwen3-MoE, Mixtral architectures")
@pytest.mark.parametrize("name", EXPERTS)
def test_mixtures_of_experts(engines, plain, models, name):
    compare(engines, plain, models(name))
