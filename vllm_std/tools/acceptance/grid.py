"""The grid: every combination of selection policy, K, draft length, refresh and temperature is one cell."""

import itertools
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Cell:
    policy: str
    k: int | float  # tokens, or a share of the context
    gamma: int
    refresh: int
    temperature: float

    @classmethod
    def of(cls, record: dict) -> "Cell":
        """The cell a record belongs to."""
        return cls(*(record[field.name] for field in fields(cls)))

    @property
    def options(self) -> dict:
        """Options for `Selector.change`; a share is what it says, without the floor a server gives it."""
        floor = {"top_k_floor": 0} if isinstance(self.k, float) else {}
        return {"top_k": self.k, "refresh": self.refresh, **floor}

    def __str__(self) -> str:
        text = f"{self.policy} K={show_k(self.k)} gamma={self.gamma}"
        text += f" refresh={self.refresh}" if self.refresh != 1 else ""
        return text + (f" T={self.temperature:g}" if self.temperature else "")


def show_k(k: int | float) -> str:
    return f"{100 * k:.3g} %" if isinstance(k, float) else f"{k}"


def make(policies: str, ks: str, gammas: str, refreshes: str, temperatures: str) -> list[Cell]:
    """Cells from comma-separated options. Raises ValueError naming the option, its value and what works."""
    from vllm_std.config import STATIC_POLICIES
    from vllm_std.tools.acceptance.policies import POLICIES

    names = _parse("--policy", policies, str, lambda name: name in POLICIES, f"names among {', '.join(POLICIES)}")
    budgets = _parse("--k", ks, _k, _good_k, "whole tokens (512) or shares of the context (0.05)")
    if len({type(k) for k in budgets}) > 1:
        raise ValueError(f"--k {ks} mixes tokens and shares of the context: give one kind.")
    whole = "whole numbers >= 1"
    lengths = _parse("--gamma", gammas, int, lambda n: n >= 1, whole)
    rounds = _parse("--refresh", refreshes, int, lambda n: n >= 1, whole)
    heats = _parse("--temperature", temperatures, float, lambda t: 0 <= t <= 10, "numbers from 0 to 10")
    every = itertools.product(heats, lengths, rounds, budgets, names)
    return list(dict.fromkeys(Cell(p, k, g, 1 if p in STATIC_POLICIES else r, t) for t, g, r, k, p in every))


def _k(text: str) -> int | float:
    return float(text) if "." in text else int(text)


def _good_k(k: int | float) -> bool:
    return 0 < k <= 1 if isinstance(k, float) else k >= 1


def _parse(option: str, given: str, kind, good, works: str) -> list:
    try:
        values = [kind(part.strip()) for part in given.split(",")]
    except ValueError:
        values = [None]
    if not all(value is not None and good(value) for value in values):
        raise ValueError(f"{option} {given} does not work: give {works}, separated by commas.")
    return list(dict.fromkeys(values))
