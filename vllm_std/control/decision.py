"""Whether to draft, and how long: from one step to the next, so that it neither swings nor costs more than it may."""

from vllm_std.control.outlook import Outlook

ON, OFF, BETTER = 0.03, 0.005, 0.01  # log of the gain: to begin, to end, and to change from one length to another
HOPELESS = -0.05  # the gain at which a look ends although its budget is not spent
WORTH = 0.15  # the gain if all drafts were accepted that makes a look worth its cost
PROMISING, MORE = 0.4, 0.2  # the same that makes a look worth more than the budget has; and beyond the last look's
LOOK = 3  # rounds until an outcome is known: the first drafts without scores, the second's comes a step late
FIRST, ENOUGH = 4, 16  # outcomes before a look tries longer drafts, and before they alone are the judge
LONG = 32  # rounds after which a look ends that has not shown a gain
RESTS = 128, 256  # plain steps before the next look, and if this was not the first and lost


class Decision:
    """at: place of the chosen length among all; 0 is plain decoding.

    Where enough outcomes are known, drafting begins as soon as it is expected to gain. Else it begins with a look at
    the shortest length that should not lose, whose worst cost the budget must cover. The first look may borrow where
    much can be gained, and so may one where clearly more can be gained than at the last: if verifying takes as long as
    several plain steps, as on a CPU, a server would save for it longer than most answers last. Until there are outcomes
    enough a look ends when its cost is spent, and from then on when it is expected to gain nothing.
    """

    def __init__(self):
        self.at = 0
        self.seen, self.proven = 0, False  # outcomes since drafting began; whether they are the judge
        self.before, self.limit = 0.0, 0.0  # budget when drafting began, and at which the look ends
        self.promise = PROMISING - MORE  # what could be gained at the last look
        self.since, self.rest = 0, 0  # steps since drafting began or ended, and plain ones before it may begin again

    @property
    def looking(self) -> bool:
        return self.at > 0 and not self.proven

    def take(self, outlook: Outlook, budget: float, known: int) -> str:
        """Choose the length of the next step; budget: seconds; known: outcomes of all requests so far. Returns the
        reason, as `Choice` has it."""
        best = 1 + int(outlook.gain[1:].argmax())
        gain = float(outlook.gain[best])
        if not self.at:
            resumes = known >= ENOUGH and gain > ON + outlook.unsure
            return self._resume(best) if resumes else self._begin(outlook, gain, budget)
        if not self.proven:
            return self._look(best, gain, budget)
        if gain < OFF:
            return self._end(budget)
        if outlook.unsure > gain:  # a look at plain steps
            self.stop()
            self.rest = 0
            return "explore"
        if gain > outlook.gain[self.at] + BETTER:
            self.at = best
        return "on"

    def stop(self) -> None:
        self.at, self.since, self.proven = 0, 0, False

    def _resume(self, best: int) -> str:
        self.at, self.since, self.proven = best, 0, True
        return "on"

    def _begin(self, outlook: Outlook, gain: float, budget: float) -> str:
        first = 1 + int((outlook.gain[1:] > 0).argmax())  # where all should lose, the shortest
        cost, promise = LOOK * float(outlook.seconds[first] - outlook.plain), float(outlook.perfect[1:].max())
        if gain < ON and promise < WORTH:
            return "cost"
        covered = budget >= cost or promise > self.promise + MORE
        if not covered or self.since < self.rest:
            return "acceptance"
        if gain > ON and outlook.unsure > gain:  # plain steps are to be measured first
            return "explore"
        self.at, self.since, self.seen, self.promise = first, 0, 0, promise
        self.before, self.limit = budget, max(budget - cost, -LOOK * outlook.plain)
        return "on" if gain > ON else "explore"

    def _look(self, best: int, gain: float, budget: float) -> str:
        hopeless = self.seen >= ENOUGH and gain < HOPELESS or self.since > LONG and gain < ON
        if hopeless or budget < self.limit:
            return self._end(budget)
        if self.seen < FIRST or gain < ON:
            return "explore"
        self.at, self.proven = best, self.seen >= ENOUGH
        return "on"

    def _end(self, budget: float) -> str:
        self.stop()
        self.rest = RESTS[1] if self.rest and budget < self.before else RESTS[0]
        return "acceptance"
