"""Exceptions of std's own: none of them may end a request."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from vllm.logger import init_logger

logger = init_logger("vllm.std")

MOST_LOGGED = 32  # causes, so that a cause that differs each time does not fill the log
LONGEST_CAUSE = 300  # characters
FAILED = {  # where: what it means
    "round": "drafting failed (%s); the next step accepts no drafts",
    "scheduler": "the choice of a draft length failed (%s); this step decodes plainly",
    "calibration": "timed steps failed (%s); what steps take is estimated",
    "metrics": "metrics failed (%s); they miss some steps",
}


class Faults:
    """Counts exceptions by where they were raised, and logs each cause once."""

    def __init__(self):
        self.counts: Counter[str] = Counter()
        self.logged: set[tuple[str, str]] = set()

    def note(self, where: str, error: Exception) -> None:
        """where: a key of FAILED."""
        self.counts[where] += 1
        cause = f"{type(error).__name__}: {error}"[:LONGEST_CAUSE]
        if (where, cause) not in self.logged and len(self.logged) < MOST_LOGGED:
            self.logged.add((where, cause))
            message = f"std: {FAILED[where]}. Each cause is logged once, and counted in vllm:std_faults_total."
            logger.error(message, cause, exc_info=error)

    @contextmanager
    def caught(self, where: str) -> Iterator[None]:
        """An exception raised inside is noted, and not raised further."""
        try:
            yield
        except Exception as error:
            self.note(where, error)

    def collect(self) -> dict[str, int]:
        """{where: exceptions} since the last call."""
        counts = dict(self.counts)
        self.counts = Counter()
        return counts
