"""The command `vllm-std check`."""

import json
import sys
from typing import Annotated

import typer

from vllm_std.tools.console import ENGINE_HELP, JsonOption, fail, json_object, quiet, terminal

EPILOG = """
Examples:

    vllm-std check

    vllm-std check --model Qwen/Qwen2.5-VL-7B-Instruct --engine '{"kv_cache_dtype": "fp8", "tensor_parallel_size": 2}'

    vllm-std check --json && vllm serve MODEL --speculative-method std
"""


def check(
    model: Annotated[str | None, typer.Option(help="folder or hub name; only its config is read")] = None,
    engine: Annotated[str, typer.Option(help=ENGINE_HELP)] = "{}",
    as_json: JsonOption = False,
) -> None:
    """Say whether std would start here: what it uses of vLLM, the device, what would be refused, what would be slow.

    Starts no engine and loads no weights. Exit status: 0 where std would start, 1 where it would not.
    """
    quiet()
    from vllm_std.tools.check import report
    from vllm_std.tools.check.finding import std_would_start
    from vllm_std.tools.check.installation import all_findings

    try:
        findings = all_findings(model, json_object(engine))
    except ValueError as error:
        raise fail(error) from None
    if as_json:
        typer.echo(json.dumps(report.as_json(findings), indent=1))
    else:
        console = terminal(sys.stdout)
        console.print(report.findings_table(findings))
        console.print(report.patches_table(findings))
    raise typer.Exit(not std_would_start(findings))
