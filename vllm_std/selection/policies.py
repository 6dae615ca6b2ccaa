"""The selection policies a user can name in `selection`."""

import numpy as np
import torch
from torch import Tensor

from vllm_std.selection.attention import all_queries, exact_mass, last_query
from vllm_std.selection.base import Observation, Policy


class Verify(Policy):
    """Attention of the token verified last, from key summaries; exact for the best of the blocks, which are read."""

    needs_summaries = True


class Exact(Policy):
    """Attention of the token verified last, from every key: the ceiling of `verify`, and too dear for a server."""

    def score(self, seen: Observation, layer: int) -> Tensor:
        return exact_mass(seen, layer, *last_query(seen, layer))


class Text(Policy):
    """The paper's (section 3.2): scored once, by the last tokens of the prompt, when the prompt is complete."""

    def due(self, rounds: np.ndarray, refresh: int) -> np.ndarray:
        return rounds == 0

    def score(self, seen: Observation, layer: int) -> Tensor:
        return exact_mass(seen, layer, *all_queries(seen, layer))


class Streaming(Policy):
    """Sink and the most recent blocks only (StreamingLLM, arXiv 2309.17453): the baseline to beat."""

    needs_queries = False

    def due(self, rounds: np.ndarray, refresh: int) -> np.ndarray:
        return np.zeros_like(rounds, dtype=bool)


class Random(Policy):
    """Blocks drawn at random: the control in tests."""

    needs_queries = False

    def score(self, seen: Observation, layer: int) -> Tensor:
        return torch.rand_like(seen.zeros())


POLICIES: dict[str, Policy] = {
    "verify": Verify(),
    "exact": Exact(),
    "text": Text(),
    "streaming": Streaming(),
    "random": Random(),
}
