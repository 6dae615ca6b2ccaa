"""The controller: how many tokens to draft in each step, so that std is never slower than plain decoding."""

from vllm_std.control.acceptance import Acceptance
from vllm_std.control.controller import Choice, Controller
from vllm_std.control.costs import Costs, Point

__all__ = ["Acceptance", "Choice", "Controller", "Costs", "Point"]
