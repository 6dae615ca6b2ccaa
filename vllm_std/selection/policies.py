"""The selection policies that a server can be started with, by the name that the option `selection` has for them."""

import numpy as np
from torch import Tensor

from vllm_std.selection.attention import all_queries, block_attention
from vllm_std.selection.batch import DensePass


class Policy:
    """Decides when blocks are scored, and by what.

    needs_queries: observation queries are captured for it.
    needs_summaries: `scoring.Scorer` scores for it, from key summaries; else `score` does, if it is ever due.
    """

    needs_queries = True
    needs_summaries = False

    def due(self, rounds: np.ndarray, refresh: int) -> np.ndarray:
        """[reqs] bool, whose blocks to score in this round.

        rounds: [reqs], how often each request has drafted since its prompt was complete. refresh: rounds from one
        scoring to the next.
        """
        return rounds % refresh == 0

    def score(self, dense_pass: DensePass, layer: int) -> Tensor:
        """[reqs, dense_pass.num_blocks] float32 scores, not negative, higher is better; for all heads of a layer."""
        raise NotImplementedError


class Verify(Policy):
    """The attention of the token verified last, estimated from key summaries, and exact for candidates."""

    needs_summaries = True


class Text(Policy):
    """Scored once, by the last tokens of the prompt, when the prompt is complete (paper section 3.2)."""

    def due(self, rounds: np.ndarray, refresh: int) -> np.ndarray:
        return rounds == 0

    def score(self, dense_pass: DensePass, layer: int) -> Tensor:
        return block_attention(dense_pass, layer, *all_queries(dense_pass, layer))


class Streaming(Policy):
    """Never scored: sink and the most recent blocks alone (StreamingLLM, arXiv 2309.17453)."""

    needs_queries = False

    def due(self, rounds: np.ndarray, refresh: int) -> np.ndarray:
        return np.zeros_like(rounds, dtype=bool)


POLICIES: dict[str, Policy] = {"verify": Verify(), "text": Text(), "streaming": Streaming()}
