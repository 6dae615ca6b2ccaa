"""The selection policies of the lab: those of a server, and two that only measurements are made with."""

import torch
from torch import Tensor

from vllm_std.selection.attention import block_attention
from vllm_std.selection.batch import DensePass
from vllm_std.selection.policies import POLICIES as SERVED
from vllm_std.selection.policies import Policy


def last_query(dense_pass: DensePass, layer: int) -> tuple[Tensor, Tensor]:
    """The observation query of the token verified last, as `selection.attention.all_queries` has all of them."""
    rows = torch.arange(len(dense_pass.last_query), device=dense_pass.last_query.device)
    queries = dense_pass.queries[layer, rows, dense_pass.last_query]
    return queries[:, None].float(), torch.ones(len(rows), 1, device=rows.device)


class Exact(Policy):
    """The attention of the token verified last, from every cached key: the ceiling of `verify`."""

    def score(self, dense_pass: DensePass, layer: int) -> Tensor:
        return block_attention(dense_pass, layer, *last_query(dense_pass, layer))


class Random(Policy):
    """Blocks drawn at random: the control."""

    needs_queries = False

    def score(self, dense_pass: DensePass, layer: int) -> Tensor:
        return torch.rand_like(dense_pass.zero_scores())


POLICIES: dict[str, Policy] = SERVED | {"exact": Exact(), "random": Random()}
