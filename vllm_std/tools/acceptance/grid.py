"""The grid: every combination of selection policy, K, draft length, refresh and temperature is one cell."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Cell:
    """k: tokens, or a share of the context; gamma: draft length, in tokens; refresh: rounds between selections."""

    policy: str
    k: int | float
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


def make_cells(policies: str, ks: str, gammas: str, refreshes: str, temperatures: str) -> list[Cell]:
    """Cells from options of values separated by commas. Raises ValueError naming the option and what works."""
    from vllm_std.option_values import STATIC_POLICIES
    from vllm_std.tools.acceptance.policies import POLICIES

    whole = "whole numbers >= 1"
    names = _values("--policy", policies, str, POLICIES.__contains__, f"names among {', '.join(POLICIES)}")
    budgets = _values("--k", ks, _k, _good_k, "whole tokens (512) or shares of the context (0.05)")
    if len({type(k) for k in budgets}) > 1:
        raise ValueError(f"--k {ks} mixes tokens and shares of the context: give one kind.")
    lengths = _values("--gamma", gammas, int, lambda length: length >= 1, whole)
    intervals = _values("--refresh", refreshes, int, lambda interval: interval >= 1, whole)
    heats = _values("--temperature", temperatures, float, lambda heat: 0 <= heat <= 10, "numbers from 0 to 10")
    cells = [
        Cell(policy, k, gamma, 1 if policy in STATIC_POLICIES else refresh, temperature)
        for temperature, gamma, refresh, k, policy in itertools.product(heats, lengths, intervals, budgets, names)
    ]
    return list(dict.fromkeys(cells))  # a policy that selects once has one cell for all values of refresh


def _k(text: str) -> int | float:
    return float(text) if "." in text else int(text)


def _good_k(k: int | float) -> bool:
    return 0 < k <= 1 if isinstance(k, float) else k >= 1


def _values(option: str, text: str, kind: Callable, good: Callable[[Any], bool], works: str) -> list:
    """Values of a `kind` that are all `good`, each once; works: what they are, for the error."""
    try:
        values = [kind(part.strip()) for part in text.split(",")]
    except ValueError:
        values = [None]
    if not all(value is not None and good(value) for value in values):
        raise ValueError(f"{option} {text} does not work: give {works}, separated by commas.")
    return list(dict.fromkeys(values))
