"""The command `vllm-std bench`."""

import contextlib
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

EPILOG = """
Examples:

    vllm-std bench --model Qwen/Qwen2.5-VL-7B-Instruct --videos clips --concurrency 1,8,32 \\
      --engine '{"max_model_len": 65536}' --std '{"top_k": 1024}'

    vllm-std bench --url http://localhost:8000 --prompts prompts.jsonl --concurrency 16
"""


def bench(
    model: Annotated[str | None, typer.Option(help="folder or hub name: a server is started for each side")] = None,
    url: Annotated[str | None, typer.Option(help="a running server with std instead: plain leaves std out")] = None,
    prompts: Annotated[list[Path], typer.Option(help='JSONL of {"prompt"} or {"messages"}, or .txt; repeatable')] = [],
    videos: Annotated[list[Path], typer.Option(help="folder of mp4 files with questions in JSON; repeatable")] = [],
    concurrency: Annotated[str, typer.Option(help="requests at a time, separated by commas")] = "1,8",
    tokens: Annotated[int, typer.Option(min=2, help="most tokens of an answer")] = 256,
    limit: Annotated[int | None, typer.Option(min=1, help="ask only the first so many prompts")] = None,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy")] = 0,
    repeats: Annotated[int, typer.Option(min=1, help="turns of each side")] = 3,
    engine: Annotated[str, typer.Option(help="arguments of vLLM, as JSON: '{\"max_model_len\": 32768}'")] = "{}",
    std: Annotated[str, typer.Option(help="options of std, as JSON: '{\"top_k\": 2048}'")] = "{}",
    out: Annotated[Path, typer.Option(help="folder for results.json, bench.png and vLLM's own report")] = Path("bench"),
    as_json: Annotated[bool, typer.Option("--json", help="print JSON, and nothing else")] = False,
) -> None:
    """Compare plain vLLM and std on your own prompts, by vLLM's own benchmark (`vllm bench serve`).

    With --model each side has a server of its own; plain does not load the plugin. The sides take turns: on a CPU both
    servers run all the time, on a GPU, which has no memory for two, each is started again for each of its turns.
    """
    from vllm_std.tools.console import fail, json_object, quiet, require_matplotlib, terminal

    quiet()
    try:
        require_matplotlib()
        load = _load(prompts, videos, concurrency, tokens, limit, temperature, repeats)
        out.mkdir(parents=True, exist_ok=True)
        with (out / "vllm-bench.txt").open("w") as report, contextlib.redirect_stdout(report):
            found = _found(model, url, load, json_object(engine), json_object(std, "--std"))
    except (ValueError, OSError) as error:
        raise fail(error) from None
    _write(found, out)
    if as_json:
        return typer.echo(json.dumps(found, indent=1))
    from vllm_std.tools.bench.report import table

    console = terminal(sys.stdout)
    console.print(table(found["rows"]))
    for line in _remarks(found, out):
        console.print(line, highlight=False)


def _load(files, folders, concurrency, tokens, limit, temperature, repeats):
    from vllm_std.tools import prompts
    from vllm_std.tools.bench.run import Load
    from vllm_std.tools.console import numbers

    asked, at_a_time = prompts.load(files, folders)[:limit], numbers("--concurrency", concurrency)
    return Load(asked, at_a_time, tokens, temperature, repeats)


def _found(model: str | None, url: str | None, load, engine: dict, std: dict) -> dict[str, Any]:
    """Raises ValueError for what does not work, naming it."""
    from vllm_std import __version__
    from vllm_std.patches import benchmark as seam
    from vllm_std.patches import probe
    from vllm_std.patches.wrapping import vllm_version
    from vllm_std.tools import check
    from vllm_std.tools.bench import report, run

    if url and not model:
        if engine or std:
            raise ValueError("--engine and --std are for servers that are started here: leave them out with --url.")
        server, name = run.running_server(url), seam.model_of(url.rstrip("/"))[1]
    elif model and not url:
        check.require(model, engine | {"speculative_config": {"method": "std"} | std})
        server, name = run.own_servers(model, engine, std), model
    else:
        raise ValueError("give --model, to start servers with, or --url, of a running one.")
    at_once = bool(url) or probe.device()["platform"] == "cpu"
    raw = run.run(load, server, bool(url), at_once, lambda text: typer.echo(text, err=True))
    settings = {"model": name, "one_server": bool(url), "prompts": len(load.prompts), "tokens": load.tokens}
    settings |= {"repeats": load.repeats, "temperature": load.temperature, "engine": engine, "std": std}
    settings |= {"vllm": vllm_version(), "vllm_std": __version__}
    return {"settings": settings, "device": _device(), "rows": report.rows(raw)}


def _device() -> str:
    from vllm_std.patches import probe

    return probe.device()["name"] or probe.device()["platform"]


def _write(found: dict, out: Path) -> None:
    from vllm_std.tools.bench.report import plot

    (out / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    plot(found["rows"], f"{Path(found['settings']['model']).name} on {found['device']}", out / "bench.png")


def _remarks(found: dict, out: Path) -> list[str]:
    said = [f"Device: {found['device']}. Written to {out}: results.json, bench.png, vllm-bench.txt."]
    if found["settings"]["one_server"]:
        said.append("Plain is the same server with std left out of each request; its KV cache has std's size.")
    if not any(row["drafted"] for row in found["rows"]):
        said.append("Nothing was drafted: std judged that no draft would pay, or the server has no std.")
    return said
