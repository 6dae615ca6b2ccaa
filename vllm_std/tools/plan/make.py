"""A plan from what the command's options say."""

from vllm_std.models import load, longest_context
from vllm_std.refusals import refuse_model
from vllm_std.roofline.devices import device_named
from vllm_std.roofline.shape import Shape
from vllm_std.tools.console import numbers
from vllm_std.tools.plan.report import Plan
from vllm_std.tools.plan.workload import LEAST_K, Workload

ASSUMED = (0.8,)  # chance that a draft is accepted, where nobody says


def make_plan(
    model: str,
    gpu: str,
    cache_dtype: str,
    workers: int,
    *,
    batch: int,
    context: int,
    gamma: str,
    k: str,
    acceptance: str | None,
) -> Plan:
    """gamma, k, acceptance: numbers separated by commas. Raises ValueError, naming the option, for what cannot be."""
    gammas = numbers("--gamma", gamma)
    ks = numbers("--k", k)
    accepted = _shares(acceptance)
    _require_possible(batch, context, gammas, ks, accepted)
    device, config = device_named(gpu), load(model)
    refuse_model(model, config)
    longest = longest_context(config)
    if longest is not None and context > longest:
        raise ValueError(f"--context {context} does not work: {model} ends at {longest} tokens; give at most those.")
    shape = Shape.of(config, cache_dtype, workers)
    workload = Workload(shape, device, batch, context, gammas, ks, accepted)
    return Plan(model, workload, assumed=acceptance is None, has_encoder=hasattr(config, "vision_config"))


def _shares(text: str | None) -> tuple[float, ...]:
    if text is None:
        return ASSUMED
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(0 <= value <= 1 for value in values):
        raise ValueError(f"--acceptance {text} does not work: give numbers from 0 to 1, separated by commas.")
    return tuple(values)


def _require_possible(batch: int, context: int, gammas: tuple, ks: tuple, accepted: tuple) -> None:
    for option, value in (("--batch", batch), ("--context", context)):
        if value < 1:
            raise ValueError(f"{option} {value} does not work: give a whole number >= 1.")
    if min(ks) < LEAST_K:
        raise ValueError(f"--k {min(ks)} leaves no block to choose: sink, recent window and one block take {LEAST_K}.")
    if 1 < len(accepted) < max(gammas):
        raise ValueError(
            f"--acceptance has {len(accepted)} positions and --gamma asks for {max(gammas)} drafts: give a share for "
            "each position, or one number."
        )
