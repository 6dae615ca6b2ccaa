"""The command `vllm-std plan`."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

ASSUMED = "0.8"  # chance that a draft is accepted, where nobody says
EPILOG = """
Examples:

    vllm-std plan --model Qwen/Qwen2.5-7B-Instruct --gpu H100 --batch 32 --context 32000

    vllm-std plan --model Qwen/Qwen2-VL-7B-Instruct --gpu L40S --batch 8 --context 16000 \\
      --acceptance 0.93,0.85,0.78,0.7,0.65 --gamma 1,3,5 --plot map.png
"""


def plan(
    model: Annotated[str, typer.Option(help="folder or hub name of the target model; only its config is read")],
    gpu: Annotated[str, typer.Option(help='"H100", "A100 40GB", "L40S", ...')],
    batch: Annotated[int, typer.Option(help="requests that decode together")],
    context: Annotated[int, typer.Option(help="tokens of each of them")],
    gamma: Annotated[str, typer.Option(help="draft lengths, in tokens")] = "1,2,3,5,7",
    k: Annotated[str, typer.Option(help="budgets, in tokens")] = "512,1024,2048",
    acceptance: Annotated[
        str | None,
        typer.Option(help=f"chance that a draft is accepted, or shares by position [default: {ASSUMED}, assumed]"),
    ] = None,
    tensor_parallel_size: Annotated[int, typer.Option(help="GPUs that share the model")] = 1,
    kv_cache_dtype: Annotated[str, typer.Option(help="as vLLM's: auto, fp8, ...")] = "auto",
    plot: Annotated[Path | None, typer.Option(help="PNG of the best speed-up over batch x context")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON, and nothing else")] = False,
) -> None:
    """Predict whether std is faster with a model, a GPU and a load, at which draft length and K, and what limits it.

    Needs no GPU, no weights and no vLLM: the times are computed from the model's config and the GPU's data sheet.
    """
    from vllm_std.tools.console import fail, numbers, require_matplotlib, terminal

    try:
        if plot:
            require_matplotlib()
        shares = _shares(acceptance or ASSUMED)
        sizes = batch, context, numbers("--gamma", gamma), numbers("--k", k), shares
        made = _plan(model, gpu, *sizes, kv_cache_dtype, tensor_parallel_size, acceptance is None)
        if plot:
            from vllm_std.tools.plan.plot import plot as draw

            draw(made.load, f"{Path(model).name} on {made.load.device.name}", plot)
    except (ValueError, OSError) as error:
        raise fail(error) from None
    _print(made, as_json, terminal(sys.stdout), plot)


def _plan(model, gpu, batch, context, gammas, ks, shares, cache_dtype, workers, assumed):
    """Raises ValueError for what does not work, naming it."""
    from vllm_std.models import load, longest_context
    from vllm_std.refusals import refuse_model
    from vllm_std.roofline.estimate import Shape, device_named
    from vllm_std.tools.plan.predict import LEAST_K, Load
    from vllm_std.tools.plan.report import Plan

    for option, value in (("--batch", batch), ("--context", context)):
        if value < 1:
            raise ValueError(f"{option} {value} does not work: give a whole number >= 1.")
    if min(ks) < LEAST_K:
        raise ValueError(f"--k {min(ks)} leaves no block to choose: sink, recent window and one block take {LEAST_K}.")
    if 1 < len(shares) < max(gammas):
        raise ValueError(
            f"--acceptance has {len(shares)} positions and --gamma asks for {max(gammas)} drafts: give a share for "
            "each position, or one number."
        )
    device, config = device_named(gpu), load(model)
    refuse_model(model, config)
    longest = longest_context(config)
    if longest is not None and context > longest:
        raise ValueError(f"--context {context} does not work: {model} ends at {longest} tokens; give at most those.")
    shape = Shape.of(config, cache_dtype, workers)
    found = Load(shape, device, batch, context, gammas, ks, shares)
    return Plan(model, found, assumed, sees=hasattr(config, "vision_config"))


def _print(made, as_json: bool, console, plot: Path | None) -> None:
    from vllm_std.tools.plan import report

    if as_json:
        return typer.echo(json.dumps(report.as_json(made), indent=1))
    lines = [report.heading(made), report.table(made), *report.text(made), *([f"Written to {plot}."] * bool(plot))]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=isinstance(line, str))


def _shares(given: str) -> tuple[float, ...]:
    try:
        values = [float(part) for part in given.split(",")]
    except ValueError:
        values = []
    if not values or not all(0 <= value <= 1 for value in values):
        raise ValueError(f"--acceptance {given} does not work: give numbers from 0 to 1, separated by commas.")
    return tuple(values)
