"""The command `vllm-std`: tools to measure std with your own model and prompts before you serve it."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from vllm_std.tools.bench import command as bench
from vllm_std.tools.console import STDERR, fail, json_object, quiet, require_matplotlib, terminal
from vllm_std.tools.demo import command as demo
from vllm_std.tools.plan import command as plan

# In this process, because cells are switched inside the engine; set before anything imports vLLM.
IN_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
DEFAULTS = {"VLLM_USE_V2_MODEL_RUNNER": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="markdown")


@app.callback()
def main() -> None:
    """Sparse-to-dense decoding for vLLM: measure it with your own model and prompts."""


Out = Annotated[Path, typer.Option(help="folder for records.jsonl, summary.json and the plots; resumed if it is there")]
Json = Annotated[bool, typer.Option("--json", help="print JSON, and nothing else")]
Against = Annotated[str | None, typer.Option(help="policy that the others are compared with, prompt by prompt")]
EPILOG = """
Examples:

    vllm-std acceptance --model Qwen/Qwen2.5-7B-Instruct --prompts a.jsonl \\
      --policy verify,exact,streaming --k 0.02,0.05,0.125 --against exact

    vllm-std acceptance --model Qwen/Qwen2-VL-7B-Instruct --videos clips \\
      --k 1024 --gamma 3,5,9 --engine '{"max_model_len": 32768}' --out lab

    vllm-std report lab --against verify
"""


@app.command(epilog=EPILOG)
def acceptance(
    model: Annotated[str, typer.Option(help="folder or hub name of the target model")],
    prompts: Annotated[list[Path], typer.Option(help='JSONL of {"prompt"} or {"messages"}, or .txt; repeatable')] = [],
    videos: Annotated[list[Path], typer.Option(help="folder of mp4 files with questions in JSON; repeatable")] = [],
    policy: Annotated[str, typer.Option(help="selection policies")] = "verify,streaming",
    k: Annotated[str, typer.Option(help="budgets: shares of the context (0.05), or tokens (512)")] = "0.02,0.05,0.125",
    gamma: Annotated[str, typer.Option(help="draft lengths, in tokens")] = "5",
    refresh: Annotated[str, typer.Option(help="rounds from one selection to the next")] = "1",
    temperature: Annotated[str, typer.Option(help="sampling temperatures; 0 is greedy")] = "0",
    sink: Annotated[int, typer.Option(min=0, help="tokens always kept at the start of the context")] = 16,
    recent: Annotated[int, typer.Option(min=0, help="tokens always kept at its end")] = 64,
    tokens: Annotated[int, typer.Option(min=2, help="most tokens of an answer")] = 128,
    batch: Annotated[int, typer.Option(min=1, help="prompts that decode together")] = 8,
    limit: Annotated[int | None, typer.Option(min=1, help="ask only the first so many prompts")] = None,
    seed: Annotated[int, typer.Option(help="of sampling")] = 0,
    engine: Annotated[str, typer.Option(help='arguments of vLLM, as JSON: \'{"dtype": "float32"}\'')] = "{}",
    against: Against = None,
    out: Out = Path("acceptance"),
    as_json: Json = False,
) -> None:
    """Measure which share of drafted tokens the target accepts, over a grid of settings, on the real engine.

    Values separated by commas span the grid: policy x K x gamma x refresh x temperature. Each prompt is prefilled once
    and decoded in every cell. A run that was stopped goes on where it was; more cells or prompts of the same file can
    be added to it.
    """
    os.environ.update(IN_PROCESS | {name: os.environ.get(name, value) for name, value in (DEFAULTS | STDERR).items()})
    from vllm_std.tools import prompts as asked
    from vllm_std.tools.acceptance import grid, run
    from vllm_std.tools.acceptance.records import Records

    try:
        require_matplotlib()
        cells = grid.make(policy, k, gamma, refresh, temperature)
        if against not in {None, *(cell.policy for cell in cells)}:
            raise ValueError(f"--against {against} is not in --policy {policy}: add it there.")
        given = asked.load(prompts, videos)
        plan = run.Plan(model, cells, tokens, batch, limit, seed, sink, recent, json_object(engine))
        records = Records(out)
        records.require(**plan.settings(), prompts=asked.digest(given))
        if run.missing(plan, given, records):
            run.run(run.start(plan, videos), plan, given, records, terminal(sys.stderr))
    except ValueError as error:
        raise fail(error) from None
    _report(records, out, against, as_json)


REPORT_EPILOG = """
Examples:

    vllm-std report acceptance

    vllm-std report lab --against verify --json
"""


@app.command(epilog=REPORT_EPILOG)
def report(
    out: Annotated[Path, typer.Argument(help="folder of a run")], against: Against = None, as_json: Json = False
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


CHECK_EPILOG = """
Examples:

    vllm-std check

    vllm-std check --model Qwen/Qwen2.5-VL-7B-Instruct --engine '{"kv_cache_dtype": "fp8", "tensor_parallel_size": 2}'

    vllm-std check --json && vllm serve MODEL --speculative-method std
"""


@app.command(epilog=CHECK_EPILOG)
def check(
    model: Annotated[str | None, typer.Option(help="folder or hub name; only its config is read")] = None,
    engine: Annotated[str, typer.Option(help="arguments of vLLM, as JSON: '{\"max_model_len\": 32768}'")] = "{}",
    as_json: Json = False,
) -> None:
    """Say whether std would start here: what it uses of vLLM, the device, what would be refused, what would be slow.

    Starts no engine and loads no weights. Exit status: 0 where std would start, 1 where it would not.
    """
    quiet()
    from vllm_std.tools import check as checks

    try:
        found = checks.check(model, json_object(engine))
    except ValueError as error:
        raise fail(error) from None
    if as_json:
        typer.echo(json.dumps(checks.as_json(found), indent=1))
    else:
        console = terminal(sys.stdout)
        console.print(checks.table(found))
        console.print(checks.patches_table(found))
    raise typer.Exit(not checks.works(found))


app.command(epilog=plan.EPILOG)(plan.plan)
app.command(epilog=bench.EPILOG)(bench.bench)
app.command(epilog=demo.EPILOG)(demo.demo)


def _report(records, out: Path, against: str | None, as_json: bool) -> None:
    from vllm_std.tools.acceptance.plot import plot
    from vllm_std.tools.acceptance.report import greedy_sentence, positions, table
    from vllm_std.tools.acceptance.summary import summarise

    summary = summarise(records, against)
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    plot(summary, out)
    if as_json:
        return typer.echo(json.dumps(summary, indent=1))
    console = terminal(sys.stdout)
    console.print(table(summary))
    if any(cell["positions"] for cell in summary["cells"]):
        console.print(positions(summary))
    written = "records.jsonl, summary.json, acceptance.png, positions.png, tokens.png"
    console.print(greedy_sentence(summary), f"Written to {out}: {written}.")
