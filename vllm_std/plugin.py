"""Entry point of the `vllm.general_plugins` group: loaded by every vLLM process, asked for by few of them."""

import logging

from vllm_std.patches.install import install
from vllm_std.patches.wrapping import vllm_version


def register() -> None:
    """Make the speculative method `std` known to vLLM; changes nothing for users of anything else."""
    try:
        install()
    except (ImportError, AttributeError) as missing:
        logging.getLogger("vllm").warning(
            "vllm-std %s: speculative method 'std' is not available, because vLLM %s lacks what it patches (%s); "
            "vLLM itself is not affected.",
            _version(),
            vllm_version(),
            missing,
        )


def _version() -> str:
    from vllm_std import __version__

    return __version__
