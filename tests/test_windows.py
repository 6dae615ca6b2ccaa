"""Models in which sliding windows stand beside full attention: drafts mask the full layers and nothing else."""

import pytest
from conftest import Acceptance, greedy, std, token_prompts
from tiny_models import WINDOWED

pytestmark = [pytest.mark.fast, pytest.mark.once]

SHORT, LONG = token_prompts([1, 45, 60], seed=9), token_prompts([300, 97, 620], seed=9)
MANAGERS = pytest.mark.parametrize("hybrid", [True, False], ids=["hybrid", "one group"])


def managed(hybrid: bool) -> dict:
    return {} if hybrid else {"disable_hybrid_kv_cache_manager": True}


def compare(engines, plain, folder, hybrid: bool, top_k: int) -> Acceptance:
    """Greedy tokens with std are plain vLLM's; what of the drafts was accepted."""
    expected = plain(folder, SHORT + LONG, 24)
    assert len(set(map(tuple, expected))) == 6 and len(set(expected[3])) > 4, "what is said depends on what was read"
    llm = engines(folder, std(top_k=top_k), **managed(hybrid))
    with Acceptance(llm) as seen:
        assert greedy(llm, SHORT + LONG, 24) == expected
    return seen


@pytest.mark.parametrize("name", WINDOWED)
@MANAGERS
def test_greedy_tokens_are_plain_vllms(engines, plain, models, name, hybrid):
    seen = compare(engines, plain, models(name), hybrid, 96)
    assert 0 < seen.accepted < seen.drafted


@pytest.mark.parametrize("name", WINDOWED)
def test_a_mask_that_keeps_everything_drafts_what_the_target_says(engines, plain, models, name):
    """Windowed layers of a draft step are those of a dense pass, to the last token of their window."""
    assert compare(engines, plain, models(name), True, 1024).rate == 1.0
