"""The command `vllm-std bench`."""

import contextlib
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from vllm_std.tools.console import (
    ENGINE_HELP,
    JsonOption,
    fail,
    json_object,
    numbers,
    quiet,
    require_matplotlib,
    terminal,
)
from vllm_std.tools.prompts import PromptFiles, VideoFolders, load_prompts

EPILOG = """
Examples:

    vllm-std bench --model Qwen/Qwen2.5-VL-7B-Instruct --videos clips --concurrency 1,8,32 \\
      --engine '{"max_model_len": 65536}' --std '{"top_k": 1024}'

    vllm-std bench --url http://localhost:8000 --prompts prompts.jsonl --concurrency 16
"""


def bench(
    model: Annotated[str | None, typer.Option(help="folder or hub name: a server is started for each side")] = None,
    url: Annotated[str | None, typer.Option(help="a running server with std instead: plain leaves std out")] = None,
    prompts: PromptFiles = [],
    videos: VideoFolders = [],
    concurrency: Annotated[str, typer.Option(help="requests at a time, separated by commas")] = "1,8",
    tokens: Annotated[int, typer.Option(min=2, help="most tokens of an answer")] = 256,
    limit: Annotated[int | None, typer.Option(min=1, help="ask only the first so many prompts")] = None,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy")] = 0,
    repeats: Annotated[int, typer.Option(min=1, help="turns of each side")] = 3,
    engine: Annotated[str, typer.Option(help=ENGINE_HELP)] = "{}",
    std: Annotated[str, typer.Option(help="options of std, as JSON: '{\"top_k\": 2048}'")] = "{}",
    out: Annotated[Path, typer.Option(help="folder for results.json, bench.png and vLLM's own report")] = Path("bench"),
    as_json: JsonOption = False,
) -> None:
    """Compare plain vLLM and std on your own prompts, by vLLM's own benchmark (`vllm bench serve`).

    With --model each side has a server of its own; plain does not load the plugin. The sides take turns: on a CPU both
    servers run all the time, on a GPU, which has no memory for two, each is started again for each of its turns.
    """
    quiet()
    from vllm_std.tools.bench.compare import Target, compare
    from vllm_std.tools.bench.run import BenchSettings

    try:
        require_matplotlib()
        asked, at_a_time = load_prompts(prompts, videos)[:limit], numbers("--concurrency", concurrency)
        settings = BenchSettings(asked, at_a_time, tokens, temperature, repeats)
        target = Target(model, url, json_object(engine), json_object(std, "--std"))
        out.mkdir(parents=True, exist_ok=True)
        with (out / "vllm-bench.txt").open("w") as report, contextlib.redirect_stdout(report):
            comparison = compare(target, settings)
    except (ValueError, OSError) as error:
        raise fail(error) from None
    _report(comparison, out, as_json)


def _report(comparison: dict, out: Path, as_json: bool) -> None:
    from vllm_std.tools.bench.plot import save_plot
    from vllm_std.tools.bench.report import comparison_table, lines_below

    (out / "results.json").write_text(json.dumps(comparison, indent=1) + "\n")
    title = f"{Path(comparison['settings']['model']).name} on {comparison['device']}"
    save_plot(comparison["rows"], title, out / "bench.png")
    if as_json:
        return typer.echo(json.dumps(comparison, indent=1))
    console = terminal(sys.stdout)
    console.print(comparison_table(comparison["rows"]))
    for line in lines_below(comparison, out):
        console.print(line, highlight=False)
