"""The command `vllm-std`: tools to measure std with your own model and prompts before you serve it."""

import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from vllm_std.bench import command as bench
from vllm_std.demo import command as demo
from vllm_std.plan import command as plan

# In this process, because cells are switched inside the engine; set before anything imports vLLM.
IN_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
DEFAULTS = {"VLLM_USE_V2_MODEL_RUNNER": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
STDERR = {"VLLM_LOGGING_STREAM": "ext://sys.stderr"}  # stdout is for the answer
QUIET = {"VLLM_LOGGING_LEVEL": "ERROR"} | STDERR

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="markdown")


@app.callback()
def main() -> None:
    """Sparse-to-dense decoding for vLLM: measure it with your own model and prompts."""


def fail(error: Exception | str) -> typer.Exit:
    """Say what is wrong in one sentence; to be raised."""
    if hasattr(error, "errors"):  # pydantic's, around a sentence of ours
        error = error.errors()[0]["msg"].removeprefix("Value error, ")
    typer.echo(f"vllm-std: {error}", err=True)
    return typer.Exit(2)


def quiet() -> None:
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


def require_matplotlib() -> None:
    if find_spec("matplotlib") is None:
        raise ValueError("the plots need matplotlib: pip install 'vllm-std[bench]'")


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
    from vllm_std.lab import grid, run
    from vllm_std.lab import prompts as asked
    from vllm_std.lab.records import Records

    try:
        require_matplotlib()
        cells = grid.make(policy, k, gamma, refresh, temperature)
        if against not in {None, *(cell.policy for cell in cells)}:
            raise ValueError(f"--against {against} is not in --policy {policy}: add it there.")
        given = asked.load(prompts, videos)
        plan = run.Plan(model, cells, tokens, batch, limit, seed, sink, recent, _json(engine))
        records = Records(out)
        records.require(**plan.settings(), prompts=asked.digest(given))
        if run.missing(plan, given, records):
            run.run(run.start(plan, videos), plan, given, records, _console(sys.stderr))
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
    from vllm_std.lab.records import Records

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
    from vllm_std import check as checks

    try:
        found = checks.check(model, _json(engine))
    except ValueError as error:
        raise fail(error) from None
    if as_json:
        typer.echo(json.dumps(checks.as_json(found), indent=1))
    else:
        console = _console(sys.stdout)
        console.print(checks.table(found))
        console.print(checks.seam_table(found))
    raise typer.Exit(not checks.works(found))


app.command(epilog=plan.EPILOG)(plan.plan)
app.command(epilog=bench.EPILOG)(bench.bench)
app.command(epilog=demo.EPILOG)(demo.demo)


def _report(records, out: Path, against: str | None, as_json: bool) -> None:
    from vllm_std.lab.plot import plot
    from vllm_std.lab.report import greedy_sentence, positions, table
    from vllm_std.lab.summary import summarise

    summary = summarise(records, against)
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    plot(summary, out)
    if as_json:
        return typer.echo(json.dumps(summary, indent=1))
    console = _console(sys.stdout)
    console.print(table(summary))
    if any(cell["positions"] for cell in summary["cells"]):
        console.print(positions(summary))
    written = "records.jsonl, summary.json, acceptance.png, positions.png, tokens.png"
    console.print(greedy_sentence(summary), f"Written to {out}: {written}.")


def _console(file):
    from rich.console import Console

    return Console(file=file, width=None if file.isatty() else 160)


def _json(text: str, option: str = "--engine") -> dict:
    try:
        given = json.loads(text)
    except json.JSONDecodeError:
        given = None
    if not isinstance(given, dict):
        example = '{"dtype": "float32"}' if option == "--engine" else '{"top_k": 2048}'
        raise ValueError(f"{option} {text} is not a JSON object: give it as '{example}'.")
    return given
