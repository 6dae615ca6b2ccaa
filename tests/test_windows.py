"""Models in which sliding windows stand beside full attention: drafts mask the full layers and nothing else."""

import json
import shutil

import pytest
from helpers import ROOT, SMOLLM2, Acceptance, greedy, std, token_prompts
from tiny_models import WINDOWED, WINDOWED_IMAGES, image_prompt, noise_video

SHORT, LONG = token_prompts([1, 45, 60], seed=9), token_prompts([300, 97, 620], seed=9)
MANAGER = {True: "hybrid", False: "one group"}
CASES = [(name, True) for name in WINDOWED] + [("gemma3_text", False), ("gpt_oss", False)]  # one KV cache group for all


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


@pytest.mark.supports("models with sliding windows: Gemma-2, 3 and 4, gpt-oss, Ministral, EXAONE-4 architectures")
@pytest.mark.parametrize("name, hybrid", CASES, ids=[f"{MANAGER[hybrid]}-{name}" for name, hybrid in CASES])
@pytest.mark.engine
def test_greedy_tokens_are_plain_vllms(engines, plain, models, name, hybrid):
    seen = compare(engines, plain, models(name), hybrid, 96)
    assert 0 < seen.accepted < seen.drafted


@pytest.mark.parametrize("name", WINDOWED)
@pytest.mark.engine
def test_a_mask_that_keeps_everything_drafts_what_the_target_says(engines, plain, models, name):
    """Windowed layers of a draft step are those of a dense pass, to the last token of their window."""
    assert compare(engines, plain, models(name), True, 1024).rate == 1.0


@pytest.mark.supports("image models with sliding windows: Gemma-3 architecture")
@pytest.mark.parametrize("name", WINDOWED_IMAGES)
@pytest.mark.engine
def test_images_and_text(engines, plain, models, name):
    prompts = [image_prompt(name, noise_video(1, seed)[0]) for seed in range(2)] + LONG[:2]
    expected = plain(models(name), prompts, 24)
    for top_k in (96, 1024):
        with Acceptance(engines(models(name), std(top_k=top_k))) as seen:
            assert greedy(seen.llm, prompts, 24) == expected
        rate, seen.llm = seen.rate, None
    assert rate == 1.0


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """SmolLM2-135M with a window of 128 tokens in two layers of three: what lies further back, the others alone see."""
    folder = tmp_path_factory.mktemp("windows") / "smollm2"
    shutil.copytree(SMOLLM2, folder)
    config = json.loads((folder / "config.json").read_text())
    kinds = ["sliding_attention", "sliding_attention", "full_attention"] * (config["num_hidden_layers"] // 3)
    changed = dict(
        architectures=["MinistralForCausalLM"], model_type="ministral", sliding_window=128, layer_types=kinds
    )
    (folder / "config.json").write_text(json.dumps(config | changed))
    return folder


def test_verify_drafts_better_than_streaming_where_full_layers_matter(engines, plain, trained):
    text = (ROOT / "tests/source_text.txt").read_text()
    prompts = [text[1000:3000] + "\n\nclass "]  # of 929 tokens
    expected, rates = plain(trained, prompts, 32, max_model_len=2048), {}
    for selection in ("verify", "streaming"):
        with Acceptance(engines(trained, std(selection=selection, top_k=192), max_model_len=2048)) as seen:
            assert greedy(seen.llm, prompts, 32) == expected
        rates[selection], seen.llm = seen.rate, None
    assert rates["verify"] > rates["streaming"]
