"""`vllm-std check`: whether std would start here, without starting anything."""

import os
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any

from rich.table import Table


@dataclass(frozen=True)
class Finding:
    """ok: None where there is nothing to judge."""

    name: str
    ok: bool | None
    says: str


def check(model: str | None, options: dict[str, Any]) -> list[Finding]:
    """options: arguments of vLLM, as `vllm.EngineArgs` names them; only looked at with a model."""
    found = [_vllm()]
    if not found[0].ok:
        return found
    found += [_plugin(), _seams(), _runner(), _device()]
    return found + _model(model, options) if model and all(finding.ok is not False for finding in found) else found


def require(model: str, options: dict[str, Any]) -> None:
    """Raise ValueError for what would end a server with std a minute after its start."""
    for finding in check(model, options):
        if finding.ok is False:
            raise ValueError(f"std would not start here: {finding.says}")


def _vllm() -> Finding:
    from vllm_std import seams

    try:
        version = seams.vllm_version()
        seams.require_supported_version()
    except ImportError:
        return Finding("vLLM", False, f"not installed for {sys.executable}: install vllm 0.32 or 0.33 beside vllm-std.")
    except ValueError as error:
        return Finding("vLLM", False, str(error))
    return Finding("vLLM", True, version)


def _plugin() -> Finding:
    allowed = os.environ.get("VLLM_PLUGINS")
    if not entry_points(group="vllm.general_plugins", name="std"):
        return Finding("plugin", False, "vLLM will not find it: install vllm-std with pip, not from its folder alone.")
    if allowed is not None and "std" not in allowed.split(","):
        return Finding("plugin", False, f"VLLM_PLUGINS={allowed} leaves it out: add std, or unset the variable.")
    return Finding("plugin", True, "vLLM loads it")


def _seams() -> Finding:
    from vllm_std.seams import LEDGER, probe

    missing = probe.missing()
    if missing:
        return Finding("seams", False, f"this vLLM lacks one: {missing}")
    return Finding("seams", True, f"all {len(LEDGER)} entries of the ledger are in place")


def _runner() -> Finding:
    if find_spec("triton") is None:
        return Finding("runner", False, "Model Runner V2 needs Triton: pip install triton.")
    return Finding("runner", True, "Triton is there for Model Runner V2")


def _device() -> Finding:
    from vllm_std.seams import probe

    found = probe.device()
    size = f", {found['memory_gib']} GiB, capability {found['capability']}" if "memory_gib" in found else ""
    return Finding("device", None, f"{found['name'] or found['platform']}{size}")


def _model(model: str, options: dict[str, Any]) -> list[Finding]:
    from vllm_std.config import BACKENDS
    from vllm_std.seams import probe

    given = {"spec_method": "std"} | options
    try:
        config = probe.engine_config(model, given)
    except (ValueError, TypeError, OSError) as error:
        return [Finding("model", False, _sentence(error))]
    backend = probe.backend(config)
    std, found = config.speculative_config, Finding("model", True, f"{model}: std would start")
    works = backend in BACKENDS
    says = backend if works else f"{backend} is not one std drafts on: use --attention-backend {' or '.join(BACKENDS)}"
    drafts = f"up to {std.num_speculative_tokens} tokens a round over top_k={std.top_k}, selection={std.selection}"
    return [found, Finding("backend", works, says), Finding("drafts", None, drafts)]


def _sentence(error: Exception) -> str:
    """Its first line; vLLM goes on with advice, and pydantic wraps both."""
    said = error.errors()[0]["msg"].removeprefix("Value error, ") if hasattr(error, "errors") else str(error)
    return (said.strip() or type(error).__name__).splitlines()[0]


def table(found: list[Finding]) -> Table:
    shown = Table(show_header=False, box=None)
    for finding in found:
        mark = {True: "[green]ok[/]", False: "[red]no[/]", None: ""}[finding.ok]
        shown.add_row(mark, finding.name, finding.says)
    return shown


def as_json(found: list[Finding]) -> dict[str, Any]:
    return {"ok": works(found), "findings": [asdict(finding) for finding in found]}


def works(found: list[Finding]) -> bool:
    return all(finding.ok is not False for finding in found)
