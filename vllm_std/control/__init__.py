"""The controller: how many tokens to draft in each step, so that std is never slower than plain decoding."""

from vllm_std.control.controller import Choice, Controller
from vllm_std.control.cost_model import CostModel, Point
from vllm_std.control.estimator import AcceptanceEstimator

__all__ = ["AcceptanceEstimator", "Choice", "Controller", "CostModel", "Point"]
