"""The command `vllm-std`: tools to measure std with your own model and prompts before you serve it.

A command's function imports what does its work when it is called, and not before: vLLM and torch take seconds to load,
which `vllm-std --help` does not wait for, and vLLM reads its environment variables then. All else imports at the top.
"""

import typer

from vllm_std.tools.acceptance import command as acceptance
from vllm_std.tools.bench import command as bench
from vllm_std.tools.check import command as check
from vllm_std.tools.demo import command as demo
from vllm_std.tools.plan import command as plan

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="markdown")


@app.callback()
def main() -> None:
    """Sparse-to-dense decoding for vLLM: measure it with your own model and prompts."""


app.command(epilog=acceptance.EPILOG)(acceptance.acceptance)
app.command(epilog=acceptance.REPORT_EPILOG)(acceptance.report)
app.command(epilog=check.EPILOG)(check.check)
app.command(epilog=plan.EPILOG)(plan.plan)
app.command(epilog=bench.EPILOG)(bench.bench)
app.command(epilog=demo.EPILOG)(demo.demo)
