"""The command `vllm-std plan`."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from vllm_std.tools.console import JsonOption, fail, require_matplotlib, terminal

ACCEPTANCE_HELP = "chance that a draft is accepted, or shares by position [default: 0.8, assumed]"
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
    acceptance: Annotated[str | None, typer.Option(help=ACCEPTANCE_HELP)] = None,
    tensor_parallel_size: Annotated[int, typer.Option(help="GPUs that share the model")] = 1,
    kv_cache_dtype: Annotated[str, typer.Option(help="as vLLM's: auto, fp8, ...")] = "auto",
    plot: Annotated[Path | None, typer.Option(help="PNG of the best speed-up over batch x context")] = None,
    as_json: JsonOption = False,
) -> None:
    """Predict whether std is faster with a model, a GPU and a load, at which draft length and K, and what limits it.

    Needs no GPU, no weights and no vLLM: the times are computed from the model's config and the GPU's data sheet.
    """
    from vllm_std.tools.plan.make import make_plan

    gpus = (gpu, kv_cache_dtype, tensor_parallel_size)
    try:
        if plot:
            require_matplotlib()
        made = make_plan(model, *gpus, batch=batch, context=context, gamma=gamma, k=k, acceptance=acceptance)
        if plot:
            _save_map(made, plot)
    except (ValueError, OSError) as error:
        raise fail(error) from None
    _print(made, as_json, plot)


def _save_map(made, file: Path) -> None:
    from vllm_std.tools.plan.plot import save_map

    save_map(made.workload, f"{Path(made.model).name} on {made.workload.device.name}", file)


def _print(made, as_json: bool, plot: Path | None) -> None:
    from vllm_std.tools.plan import report

    if as_json:
        return typer.echo(json.dumps(report.as_json(made), indent=1))
    console = terminal(sys.stdout)
    console.print(report.heading(made), highlight=False, markup=False, soft_wrap=True)
    console.print(report.speedup_table(made))
    for line in report.lines_below(made) + [f"Written to {plot}."] * bool(plot):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
