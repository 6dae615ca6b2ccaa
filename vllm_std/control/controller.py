"""Which draft length each step takes, and who is drafted for."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from vllm_std.control.acceptance import Acceptance
from vllm_std.control.budget import Budget
from vllm_std.control.costs import Costs
from vllm_std.control.decision import Decision
from vllm_std.control.outlook import Outlook, look_ahead
from vllm_std.control.prices import Prices, region

REFRESH, IDLE_REFRESH = 4, 16  # steps of the same requests that one decision serves: drafting, and plain ones
STALE = 128  # plain steps after which old outcomes count for little


@dataclass(frozen=True)
class Choice:
    """What the next step does.

    length: tokens to draft for each request, one of the controller's lengths.
    reason: "on"; "explore", a look at another length, plain steps included, at bounded cost; or why not: "cost", no
        acceptance could pay enough at this batch and context; "acceptance", too few drafts are accepted, or a look has
        to wait for its budget; "idle", there is nobody to draft for.
    speedup: tokens/s expected, over those of plain decoding; 1.0 where length is 0.
    skipped: requests not to be drafted for: they opted out, or their drafts keep failing.
    """

    length: int
    reason: str
    speedup: float
    skipped: frozenset[str] = frozenset()


class Controller:
    """costs: of rounds; lengths: draft lengths to choose from, ascending from 0; capacity: most requests at a time.

    Outcomes and times may come late, for requests that have ended, or not at all.
    """

    def __init__(self, costs: Costs, lengths: Sequence[int], capacity: int):
        self.costs, self.lengths = costs, tuple(lengths)
        self.prices, self.outcomes = Prices(costs, self.lengths), Acceptance(capacity, self.lengths[-1])
        self.budget, self.decision = Budget(capacity), Decision()
        self.asked: tuple | None = None  # what the last choice was for
        self.choice = Choice(0, "idle", 1.0)
        self.bill = 0.0, 0.0, 0.0  # its seconds, those of a plain step, and what it is expected to lose

    def observe(self, request: str, drafted: int, accepted: int) -> None:
        """A request's drafts were verified, at least one; a rejected one ends the accepted prefix."""
        self.outcomes.observe(request, drafted, accepted)

    def measured(self, length: int, batch: int, kv: int, seconds: float, drafted: int) -> None:
        """A step took so long that only decoded, and drafted `length` tokens as the step before did; drafted: requests
        of the batch that it drafted for."""
        self.budget.pay(self.prices.measured(length, batch, kv, seconds, drafted))
        self.costs.correct(length, batch, kv, seconds, drafted)

    def forget(self, request: str) -> None:
        """The request has finished."""
        self._take_in()
        self.outcomes.forget(request)

    def acceptance(self) -> list[float]:
        """Share of drafts accepted after their predecessors were, by position; of all requests, lately."""
        self._take_in()
        return self.outcomes.acceptance()

    def choose(self, requests: Sequence[str], kv: int, opted_out: Collection[str] = ()) -> Choice:
        """requests: that decode next; kv: their cached tokens in all."""
        self._take_in()
        asked, decision = (list(requests), frozenset(opted_out), region(len(requests), kv)), self.decision
        decision.since += 1
        refresh = REFRESH if decision.at else IDLE_REFRESH
        if decision.since % refresh and asked == self.asked and not decision.looking:
            self.budget.step(*self.bill)
            return self.choice
        out = asked[1].intersection(requests) if opted_out else frozenset()
        drafting = [request for request in requests if request not in out] if out else requests
        if not drafting:
            self.asked = None
            return Choice(0, "idle", 1.0, out)
        outlook = look_ahead(self.prices, self.outcomes, drafting, len(requests), kv, self.lengths)
        self.asked, self.choice = asked, self._choose(outlook, out)
        return self.choice

    def _choose(self, outlook: Outlook, out: frozenset[str]) -> Choice:
        before, since = self.decision.at, self.decision.since
        if not before and since == STALE:
            self.outcomes.stale()
        reason = self.decision.take(outlook, self.budget.available(outlook.plain), self.outcomes.known)
        at = self.decision.at
        taken, plain, skipped = float(outlook.seconds[at]), outlook.plain, outlook.skipped[at]
        if not before:  # what is drafted without scores is not counted on
            self.bill = taken, plain, taken - plain
        else:
            self.bill = taken, plain, self.budget.expect(outlook, at, self.lengths[at]) if at else 0.0
        if skipped:
            self.outcomes.skip(self.outcomes.rows_of(list(skipped)))
        self.budget.step(*self.bill)
        return Choice(self.lengths[at], reason, float(outlook.speedup[at]) if at else 1.0, out | skipped)

    def _take_in(self) -> None:
        if self.outcomes.waiting:
            rows, beyond = self.outcomes.take_in()
            self.budget.settle(rows, beyond)
            self.decision.seen += len(rows)
