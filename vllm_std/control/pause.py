"""Pauses of drafting after a fault: a round that failed may fail again, and costs a step that verifies nothing."""

LONGEST = 1024  # steps of a pause, at most


class Pause:
    """Each pause is twice as long as the one before. left: steps of the present pause still to come."""

    def __init__(self):
        self.left = 0
        self.next = 1  # steps of the next pause

    def begin(self) -> None:
        self.left = self.next
        self.next = min(2 * self.next, LONGEST)

    def step(self) -> bool:
        """A step is to be chosen. Returns whether it is one of the pause."""
        paused = self.left > 0
        self.left -= paused
        return paused
