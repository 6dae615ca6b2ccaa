"""Entry point of the `vllm.general_plugins` group: loaded by every vLLM process, asked for by few of them."""

import logging

from vllm_std import seams


def register() -> None:
    """Make the speculative method `std` known to vLLM; changes nothing for users of anything else."""
    try:
        seams.install()
    except (ImportError, AttributeError) as missing:
        logging.getLogger("vllm").warning(
            "vllm-std %s: speculative method 'std' is not available, because vLLM %s lacks a seam (%s); "
            "vLLM itself is not affected.",
            _version(),
            seams.vllm_version(),
            missing,
        )


def _version() -> str:
    from vllm_std import __version__

    return __version__
