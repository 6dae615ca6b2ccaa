"""What a step does about drafts."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """What the next step does.

    length: tokens to draft for each request that has not opted out, one of the lengths to choose from.
    reason: "on"; "explore", an exploration, or plain steps whose time is to be measured; "fixed", the length is not
        chosen; or why it does not draft: "cost", no acceptance could pay enough at this batch and context;
        "acceptance", too few drafts are accepted, or an exploration has to wait; "idle", there is nobody to draft for;
        "fault", an error of std's own.
    speedup: tokens/s expected, over those of plain decoding; 1.0 where length is 0.
    steps: draft steps, which may be fewer than drafts where proposals come true; None is one for each draft.
    """

    length: int
    reason: str
    speedup: float = 1.0
    steps: int | None = None
