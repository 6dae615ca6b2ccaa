"""What the commands share: options, errors in one sentence, the environment of vLLM, output that fits a terminal."""

import json
import os
from importlib.util import find_spec
from typing import Annotated, TextIO

import typer
from rich.console import Console

STDERR = {"VLLM_LOGGING_STREAM": "ext://sys.stderr"}  # environment: stdout is for what the command answers
QUIET = {"VLLM_LOGGING_LEVEL": "ERROR"} | STDERR  # environment: vLLM logs errors alone
FILE_WIDTH = 160  # characters of a line where the output is no terminal
ENGINE_HELP = "arguments of vLLM, as JSON: '{\"max_model_len\": 32768}'"
EXAMPLES = {"--engine": '{"dtype": "float32"}', "--std": '{"top_k": 2048}'}  # of options that take JSON

JsonOption = Annotated[bool, typer.Option("--json", help="print JSON, and nothing else")]


def fail(error: Exception) -> typer.Exit:
    """Say on stderr what is wrong, in one sentence; what is returned ends the command with status 2 when raised."""
    says = str(error)
    if hasattr(error, "errors"):  # pydantic's, around a sentence of ours
        says = error.errors()[0]["msg"].removeprefix("Value error, ")
    typer.echo(f"vllm-std: {says}", err=True)
    return typer.Exit(2)


def quiet() -> None:
    """To be called before vLLM is imported, which reads these variables then."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


def require_matplotlib() -> None:
    """Raise ValueError where there is none: before hours of measurement, not after them."""
    if find_spec("matplotlib") is None:
        raise ValueError("the plots need matplotlib: pip install 'vllm-std[bench]'")


def terminal(file: TextIO) -> Console:
    return Console(file=file, width=None if file.isatty() else FILE_WIDTH)


def json_object(text: str, option: str = "--engine") -> dict:
    """What an option gives as JSON. Raises ValueError where that is no object."""
    try:
        given = json.loads(text)
    except json.JSONDecodeError:
        given = None
    if not isinstance(given, dict):
        raise ValueError(f"{option} {text} is not a JSON object: give it as '{EXAMPLES[option]}'.")
    return given


def numbers(option: str, text: str) -> tuple[int, ...]:
    """Whole numbers separated by commas, each once. Raises ValueError where one is below 1."""
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or min(values) < 1:
        raise ValueError(f"{option} {text} does not work: give whole numbers >= 1, separated by commas.")
    return tuple(dict.fromkeys(values))
