"""What a run of the lab asks of an engine."""

from dataclasses import dataclass
from typing import Any

from vllm_std import __version__
from vllm_std.patches.wrapping import vllm_version
from vllm_std.tools.acceptance.grid import Cell


@dataclass(frozen=True)
class LabSettings:
    """tokens: most of an answer; batch: prompts that decode together; limit: prompts to ask, the first ones of all.

    sink, recent: tokens that the mask always holds; proposals: tokens proposed for each draft step; engine:
    arguments as `vllm.EngineArgs` names them.
    """

    model: str
    cells: list[Cell]
    tokens: int
    batch: int
    limit: int | None
    seed: int
    sink: int
    recent: int
    proposals: int
    engine: dict[str, Any]

    @property
    def max_gamma(self) -> int:
        return max(cell.gamma for cell in self.cells)

    def recorded(self) -> dict[str, Any]:
        """What records must share to be compared, known before the engine is up."""
        return {
            "model": self.model,
            "vllm": vllm_version(),
            "vllm_std": __version__,
            "engine": self.engine,
            "sink": self.sink,
            "recent": self.recent,
            "proposals": self.proposals,
            "max_gamma": self.max_gamma,
            "tokens": self.tokens,
            "seed": self.seed,
        }
