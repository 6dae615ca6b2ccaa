"""One thing that a patch needs of vLLM."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Need:
    """How a patch uses a name of vLLM's, and what that name must have.

    how: `overrides` and `wraps` are functions that std replaces: `what` are their parameters, exactly these or, with a
    trailing `...`, these before any others; alternatives, for versions of vLLM, stand on both sides of a `|`.
    `calls` is a function that std calls: `what` is what it passes, `x` by position and `x=` by name. `reads` is a class
    or module: `what` are its attributes that std reads or sets.
    where: "module:Class.method", "module:function", "module:Class" or "module:".
    """

    how: Literal["overrides", "wraps", "calls", "reads"]
    where: str
    what: str
