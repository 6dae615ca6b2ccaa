"""With proposals greedy tokens are plain vLLM's, and drafts are those of one-token steps."""

import pytest
from helpers import greedy, speculator_of, std, token_prompts

MIXED = token_prompts([45, 300, 1, 620, 97])


def decoded(llm, steps=None) -> tuple[list[list[int]], list]:
    """Greedy tokens of MIXED, and the drafts of each round; steps: draft steps of each round."""
    speculator, rounds = speculator_of(llm), []
    propose = speculator.propose

    def record(*args, **kwargs):
        speculator.std.planned_steps = steps
        drafts = propose(*args, **kwargs)
        rounds.append(drafts.tolist())
        return drafts

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speculator, "propose", record)
        return greedy(llm, MIXED), rounds


@pytest.mark.engine
@pytest.mark.versions
def test_drafts_are_those_of_one_token_steps(engines, plain, models):
    expected = plain(models("llama"), MIXED)
    without = decoded(engines(models("llama"), std(num_speculative_tokens=5)))
    assert without[0] == expected
    assert decoded(engines(models("llama"), std(num_speculative_tokens=5, proposals=3))) == without


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.engine
@pytest.mark.versions
def test_fewer_steps_than_drafts(engines, plain, models, steps):
    expected = plain(models("llama"), MIXED)
    assert decoded(engines(models("llama"), std(num_speculative_tokens=5, proposals=3)), steps)[0] == expected
