"""The commands `vllm-std acceptance` and `vllm-std report`."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from vllm_std.tools.console import ENGINE_HELP, STDERR, JsonOption, fail, json_object, require_matplotlib, terminal
from vllm_std.tools.prompts import PromptFiles, VideoFolders

# Environment: the engine runs in this process, because the lab switches settings inside it.
IN_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
DEFAULTS = {"VLLM_USE_V2_MODEL_RUNNER": "1", "VLLM_LOGGING_LEVEL": "WARNING"} | STDERR  # environment, unless set
WRITTEN = "records.jsonl, summary.json, acceptance.png, positions.png, tokens.png"
OUT_HELP = "folder for records.jsonl, summary.json and the plots; resumed if it is there"

Against = Annotated[str | None, typer.Option(help="policy that the others are compared with, prompt by prompt")]
EPILOG = """
Examples:

    vllm-std acceptance --model Qwen/Qwen2.5-7B-Instruct --prompts a.jsonl \\
      --policy verify,exact,streaming --k 0.02,0.05,0.125 --against exact

    vllm-std acceptance --model Qwen/Qwen2-VL-7B-Instruct --videos clips \\
      --k 1024 --gamma 3,5,9 --engine '{"max_model_len": 32768}' --out lab

    vllm-std report lab --against verify
"""
REPORT_EPILOG = """
Examples:

    vllm-std report acceptance

    vllm-std report lab --against verify --json
"""


def acceptance(
    model: Annotated[str, typer.Option(help="folder or hub name of the target model")],
    prompts: PromptFiles = [],
    videos: VideoFolders = [],
    policy: Annotated[str, typer.Option(help="selection policies")] = "verify,streaming",
    k: Annotated[str, typer.Option(help="budgets: shares of the context (0.05), or tokens (512)")] = "0.02,0.05,0.125",
    gamma: Annotated[str, typer.Option(help="draft lengths, in tokens")] = "5",
    refresh: Annotated[str, typer.Option(help="rounds from one selection to the next")] = "1",
    temperature: Annotated[str, typer.Option(help="sampling temperatures; 0 is greedy")] = "0",
    sink: Annotated[int, typer.Option(min=0, help="tokens always kept at the start of the context")] = 16,
    recent: Annotated[int, typer.Option(min=0, help="tokens always kept at its end")] = 64,
    proposals: Annotated[int, typer.Option(min=0, help="tokens proposed by n-gram lookup for each draft step")] = 0,
    tokens: Annotated[int, typer.Option(min=2, help="most tokens of an answer")] = 128,
    batch: Annotated[int, typer.Option(min=1, help="prompts that decode together")] = 8,
    limit: Annotated[int | None, typer.Option(min=1, help="ask only the first so many prompts")] = None,
    seed: Annotated[int, typer.Option(help="of sampling")] = 0,
    engine: Annotated[str, typer.Option(help=ENGINE_HELP)] = "{}",
    against: Against = None,
    out: Annotated[Path, typer.Option(help=OUT_HELP)] = Path("acceptance"),
    as_json: JsonOption = False,
) -> None:
    """Measure which share of drafted tokens the target accepts, over a grid of settings, on the real engine.

    Values separated by commas span the grid: policy x K x gamma x refresh x temperature. Each prompt is prefilled once
    and decoded in every cell. A run that was stopped goes on where it was; more cells or prompts of the same file can
    be added to it.
    """
    _prepare_environment()
    from vllm_std.tools.acceptance.measure import Options, measure

    options = Options(policy, k, gamma, refresh, temperature, prompts, videos, against)
    asks = {"tokens": tokens, "batch": batch, "limit": limit, "seed": seed}
    asks |= {"sink": sink, "recent": recent, "proposals": proposals}
    try:
        require_matplotlib()
        records = measure(model, options, json_object(engine), out, **asks)
    except ValueError as error:
        raise fail(error) from None
    _report(records, out, against, as_json)


def _prepare_environment() -> None:
    os.environ.update(IN_PROCESS)
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)


def report(
    out: Annotated[Path, typer.Argument(help="folder of a run")], against: Against = None, as_json: JsonOption = False
) -> None:
    """Make table, summary and plots again from the records of `vllm-std acceptance`, without an engine."""
    from vllm_std.tools.acceptance.records import Records

    records = Records(out)
    try:
        require_matplotlib()
        if not records.rows:
            raise ValueError(f"{out} holds no records: give the --out of a run of vllm-std acceptance.")
        _report(records, out, against, as_json)
    except ValueError as error:
        raise fail(error) from None


def _report(records, out: Path, against: str | None, as_json: bool) -> None:
    from vllm_std.tools.acceptance.plot import save_plots
    from vllm_std.tools.acceptance.report import acceptance_table, greedy_sentence, positions_table
    from vllm_std.tools.acceptance.summary import summarise

    summary = summarise(records, against)
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    save_plots(summary, out)
    if as_json:
        return typer.echo(json.dumps(summary, indent=1))
    console = terminal(sys.stdout)
    console.print(acceptance_table(summary))
    if any(cell["positions"] for cell in summary["cells"]):
        console.print(positions_table(summary))
    console.print(greedy_sentence(summary), f"Written to {out}: {WRITTEN}.")
