"""What the commands share: errors in one sentence, a table that fits the terminal, JSON options."""

import json
import os
from importlib.util import find_spec

import typer

STDERR = {"VLLM_LOGGING_STREAM": "ext://sys.stderr"}  # stdout is for the answer
QUIET = {"VLLM_LOGGING_LEVEL": "ERROR"} | STDERR


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


def terminal(file):
    from rich.console import Console

    return Console(file=file, width=None if file.isatty() else 160)


def json_object(text: str, option: str = "--engine") -> dict:
    try:
        given = json.loads(text)
    except json.JSONDecodeError:
        given = None
    if not isinstance(given, dict):
        example = '{"dtype": "float32"}' if option == "--engine" else '{"top_k": 2048}'
        raise ValueError(f"{option} {text} is not a JSON object: give it as '{example}'.")
    return given


def numbers(option: str, given: str) -> tuple[int, ...]:
    try:
        values = [int(part) for part in given.split(",")]
    except ValueError:
        values = []
    if not values or min(values) < 1:
        raise ValueError(f"{option} {given} does not work: give whole numbers >= 1, separated by commas.")
    return tuple(dict.fromkeys(values))
