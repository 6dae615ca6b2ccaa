"""Exceptions of std's own: none of them may take a request down."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from vllm.logger import init_logger

logger = init_logger("vllm.std")


class Faults:
    """Counts exceptions by where they were raised, and logs each cause once."""

    def __init__(self):
        self.counts: Counter[str] = Counter()
        self.known: set[str] = set()

    def note(self, where: str, error: Exception) -> None:
        self.counts[where] += 1
        cause = f"{where}: {type(error).__name__}: {error}"[:300]
        if cause not in self.known and len(self.known) < 32:
            self.known.add(cause)
            logger.error(
                "std: it failed in its %s; vLLM goes on without its drafts. This is logged once, and counted in "
                "vllm:std_faults_total.", cause, exc_info=error,
            )  # fmt: skip

    @contextmanager
    def caught(self, where: str) -> Iterator[None]:
        """What is raised inside is noted, and goes no further."""
        try:
            yield
        except Exception as error:
            self.note(where, error)

    def take(self) -> dict[str, int]:
        """Hand over the counts since the last time."""
        counts, self.counts = dict(self.counts), Counter()
        return counts
