"""A scheduling step, as far as std is concerned."""

from dataclasses import dataclass

from vllm_std.control.choice import Choice


@dataclass(frozen=True)
class Step:
    """A scheduled step.

    began: seconds; choice: what was chosen for it; length: drafts that it proposes for each request, in
    so many draft steps.
    verified: drafts that each request with drafts has, -1 where these differ or a prompt is computed.
    requests: number of all; drafted: number of those with drafts to verify; kv: cached tokens that it reads.
    unscored: whether the drafts that it verifies are of an unscored round.
    """

    began: float
    choice: Choice
    length: int
    steps: int
    verified: int
    requests: int
    drafted: int
    kv: int
    unscored: bool


def verified_drafts(output) -> int:
    """Drafts that each request with drafts has, -1 where these differ or a prompt is computed."""
    tokens = output.num_scheduled_tokens
    drafts = output.scheduled_spec_decode_tokens
    decodes = all(tokens[request] == 1 + len(drafts.get(request, ())) for request in tokens)
    lengths = {len(draft) for draft in drafts.values()} or {0}
    return lengths.pop() if decodes and len(lengths) == 1 and not output.scheduled_new_reqs else -1
