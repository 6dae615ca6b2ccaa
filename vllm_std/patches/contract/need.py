"""One thing that a patch needs of vLLM, and the names that several parts of the contract use."""

from dataclasses import dataclass
from typing import Literal

# Places in vLLM, as `Need.where` has them.
EXECUTOR = "vllm.v1.executor:Executor"
RUNNER = "vllm.v1.worker.gpu.model_runner:"
BACKEND = "vllm.v1.attention.backend:"
TARGET = "vllm.v1.worker.gpu.spec_decode.target_dependent_ar.speculator:TargetDependentARSpeculator"
GRAPHS = "vllm.v1.worker.gpu.spec_decode.target_dependent_ar.cudagraph_utils:SpeculatorCudaGraphManager"


@dataclass(frozen=True)
class Need:
    """How a patch uses a name of vLLM's, and what that name must have.

    how: `overrides` and `wraps` are functions that std replaces: `what` are their parameters, exactly these or, with a
    trailing `...`, these before any others; alternatives, for versions of vLLM, stand on both sides of a `|`.
    `calls` is a function that std calls: `what` is what it passes, `x` by position and `x=` by name. `reads` is a class
    or module: `what` are its attributes that std reads or sets.
    where: "module:Class.method", "module:function", "module:Class" or "module:".
    """

    how: Literal["overrides", "wraps", "calls", "reads"]
    where: str
    what: str
