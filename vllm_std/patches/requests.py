"""What a request may say: all that it may to plain vLLM, and that std is to be left out for it alone, with `vllm_xargs:
{"std": false}` in the OpenAI API or `extra_args` in SamplingParams.
"""

from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import SamplingParams
from vllm.v1.engine.input_processor import InputProcessor

from vllm_std.option_values import shown
from vllm_std.patches.wrapping import Patch, is_std, wrap

REQUESTS = Patch(
    name="requests",
    replaces=(
        "vllm.v1.engine.input_processor.InputProcessor._validate_params; SamplingParams._validate_spec_decode (passed "
        "over)"
    ),
    why=(
        "vllm_xargs reaches the scheduler unchecked, where an error would end the engine; and requests with min_p or "
        "logit_bias are refused with any speculative method, though Model Runner V2 verifies with both"
    ),
    upstream="none",
    remove_when="a plugin can check vllm_xargs before a request is queued; vLLM refuses them on Model Runner V1 alone",
)

WORDS = {"false": False, "true": True}


def opts_out(params) -> bool:
    """Whether a request is not to be drafted. vLLM's API turns a JSON `false` into 0.

    Raises VLLMValidationError, which vLLM's server answers with 400, for what is neither true nor false.
    """
    value = (getattr(params, "extra_args", None) or {}).get("std", True)
    said = WORDS.get(value.lower(), value) if isinstance(value, str) else value
    if isinstance(said, bool) or type(said) in (int, float) and said in (0, 1):
        return not said
    raise VLLMValidationError(
        f'vllm_xargs std={shown(value)} is neither true nor false: {{"std": false}} decodes without drafts.',
        parameter="vllm_xargs", value=shown(value),
    )  # fmt: skip


def _validate_params(original, self, params, *args, **kwargs):
    if is_std(self.vllm_config):
        opts_out(params)
    return original(self, params, *args, **kwargs)


def _validate_spec_decode(original, self, speculative_config, *args, **kwargs):
    """min_p and logit_bias, which vLLM refuses with drafts, because Model Runner V1 had to; V2 verifies with them."""
    if getattr(speculative_config, "method", None) != "std":
        original(self, speculative_config, *args, **kwargs)


def install() -> None:
    """Answer a request that says nonsense of std at once. Safe to call any number of times."""
    wrap(SamplingParams, "_validate_spec_decode", _validate_spec_decode)
    wrap(InputProcessor, "_validate_params", _validate_params)
