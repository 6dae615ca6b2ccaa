"""The controller: how many tokens to draft in each step, so that std is never slower than plain decoding."""

from vllm_std.control.choice import Choice
from vllm_std.control.controller import Controller
from vllm_std.control.cost_model import CostModel
from vllm_std.control.estimator import AcceptanceEstimator
from vllm_std.control.fitting import Point, fit
from vllm_std.control.fixed import FixedLength

__all__ = ["AcceptanceEstimator", "Choice", "Controller", "CostModel", "FixedLength", "Point", "fit"]
