"""What each patch needs of vLLM, as data, by the patch's name; `patches.fit` compares it with the vLLM installed.

It imports nothing of vLLM, so that a vLLM that does not fit is refused in one sentence.
"""

from vllm_std.patches.contract import attention, commands, drafting, options, sampling, steps
from vllm_std.patches.contract.need import Need

__all__ = ["CONTRACT", "TOOLS", "Need"]

CONTRACT: dict[str, tuple[Need, ...]] = (
    options.NEEDS | steps.NEEDS | attention.NEEDS | drafting.NEEDS | sampling.NEEDS | commands.NEEDS
)
TOOLS = tuple(commands.NEEDS)  # patches of commands, which a server does without
