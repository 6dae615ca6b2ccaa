"""Models whose attention the mask cannot apply to are refused at start-up, by name, before weights are loaded."""

import pytest
from tiny_models import REFUSED
from vllm.engine.arg_utils import EngineArgs

REASONS = {
    "mistral_sliding": "a sliding window of 64 tokens in every layer",
    "llama4_text": "chunked_attention layers",
    "qwen3_next": "a hybrid of attention and Mamba",
    "deepseek_v3": "MLA attention",
    "mamba2": "without attention",
    "jamba": "a hybrid of attention and Mamba",
    "whisper": "an encoder-decoder",
    "bloom": "ALiBi positions",
    "falcon_alibi": "ALiBi positions",
}

pytestmark = pytest.mark.versions


@pytest.mark.supports(
    "refused at start-up: windows in every layer, chunked, hybrid, MLA, Mamba, ALiBi, encoder-decoder models"
)
@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.unit
def test_models_the_mask_cannot_apply_to(models, name):
    assert EngineArgs(model=str(models(name))).create_engine_config(), "plain vLLM takes it"
    with pytest.raises(ValueError) as error:
        EngineArgs(model=str(models(name)), spec_method="std").create_engine_config()
    assert f"--model={models(name)} ({REASONS[name]})" in str(error.value)
    assert "use a decoder in which layers attend to the full context, all" in str(error.value)


@pytest.mark.engine
def test_attention_that_only_the_worker_sees_is_refused_there(engines, models, monkeypatch):
    """The worker checks the KV cache itself, whatever the model's config said."""
    from vllm_std import refusals

    monkeypatch.setattr(refusals, "_model", lambda vllm_config: ())
    with pytest.raises(ValueError, match=r"does not support --model=.*sliding window in every layer.*full context"):
        engines(models("mistral_sliding"), {"method": "std"}, load_format="dummy")
