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
    found += [_plugin(), _patches(), _runner(), _device()]
    return found + _model(model, options) if model and all(finding.ok is not False for finding in found) else found


def require(model: str, options: dict[str, Any]) -> None:
    """Raise ValueError for what would end a server with std a minute after its start."""
    for finding in check(model, options):
        if finding.ok is False:
            raise ValueError(f"std would not start here: {finding.says}")


def _vllm() -> Finding:
    from vllm_std.patches import fit
    from vllm_std.patches.wrapping import vllm_version

    try:
        version = vllm_version()
    except ImportError:
        return Finding("vLLM", False, f"not installed for {sys.executable}: install vllm 0.32 or 0.33 beside vllm-std.")
    if fit.tested():
        return Finding("vLLM", True, version)
    return Finding("vLLM", None, f"{version}, which was not tested: the patches below say whether it fits")


def _plugin() -> Finding:
    allowed = os.environ.get("VLLM_PLUGINS")
    if not entry_points(group="vllm.general_plugins", name="std"):
        return Finding("plugin", False, "vLLM will not find it: install vllm-std with pip, not from its folder alone.")
    if allowed is not None and "std" not in allowed.split(","):
        return Finding("plugin", False, f"VLLM_PLUGINS={allowed} leaves it out: add std, or unset the variable.")
    return Finding("plugin", True, "vLLM loads it")


def _patches() -> Finding:
    from vllm_std.patches import fit
    from vllm_std.patches.contract import CONTRACT

    try:
        fit.require()
    except ValueError as error:
        return Finding("patches", False, str(error))
    names = sum(map(len, CONTRACT.values()))
    return Finding("patches", True, f"all {len(CONTRACT)} of the ledger fit, in the {names} names listed below")


def contract(found: list[Finding]) -> list[dict[str, Any]]:
    """What each patch needs of vLLM, and whether it is there, a JSON object for each name; of no vLLM nothing."""
    from vllm_std.patches import fit
    from vllm_std.patches.contract import CONTRACT

    if all(finding.name != "patches" for finding in found):
        return []
    return [
        {"patch": name, "how": need.how, "where": need.where, "what": need.what, "misfit": fit.first_misfit((need,))}
        for name, needs in CONTRACT.items()
        for need in needs
    ]


def _runner() -> Finding:
    if find_spec("triton") is None:
        return Finding("runner", False, "Model Runner V2 needs Triton: pip install triton.")
    return Finding("runner", True, "Triton is there for Model Runner V2")


def _device() -> Finding:
    from vllm_std.patches import probe

    found = probe.device()
    size = f", {found['memory_gib']} GiB, capability {found['capability']}" if "memory_gib" in found else ""
    return Finding("device", None, f"{found['name'] or found['platform']}{size}")


def _model(model: str, options: dict[str, Any]) -> list[Finding]:
    from vllm_std.patches import probe
    from vllm_std.refusals import BACKENDS
    from vllm_std.tools import forecast

    given = {"spec_method": "std"} | options
    try:
        config = probe.engine_config(model, given)
    except Exception as error:  # whatever vLLM, transformers or a hub may say of a model and its options
        return [Finding("model", False, _sentence(error))]
    backend = probe.backend(config)
    std, found = config.speculative_config, Finding("model", True, f"{model}: std would start")
    works = backend in BACKENDS
    says = backend if works else f"{backend} is not one std drafts on: use --attention-backend {' or '.join(BACKENDS)}"
    drafts = f"up to {std.num_speculative_tokens} tokens a round over top_k={std.top_k}, selection={std.selection}"
    told = [Finding("drafts", None, drafts), *(Finding(*of) for of in forecast.sentences(config, probe.device()))]
    return [found, Finding("backend", works, says), *told]


def _sentence(error: Exception) -> str:
    """Its first line; vLLM goes on with advice, and pydantic wraps both and knows where."""
    said = str(error)
    if hasattr(error, "errors"):
        (found, *_) = error.errors()
        own = found["msg"].startswith("Value error, ")
        said = (
            found["msg"].removeprefix("Value error, ") if own else f"{'.'.join(map(str, found['loc']))}: {found['msg']}"
        )
    return (said.strip() or type(error).__name__).splitlines()[0]


MARKS = {True: "[green]ok[/]", False: "[red]no[/]", None: ""}


def table(found: list[Finding]) -> Table:
    shown = Table(show_header=False, box=None)
    for finding in found:
        shown.add_row(MARKS[finding.ok], finding.name, finding.says)
    return shown


def patches_table(found: list[Finding]) -> Table:
    """The names of vLLM's inside that each patch uses."""
    shown = Table("", "patch", "uses in vLLM", box=None)
    for need in contract(found):
        module, _, path = need["where"].partition(":")
        shown.add_row(MARKS[need["misfit"] is None], need["patch"], f"{need['how']} {module} {path}".rstrip())
    return shown


def as_json(found: list[Finding]) -> dict[str, Any]:
    return {"ok": works(found), "findings": [asdict(finding) for finding in found], "patches": contract(found)}


def works(found: list[Finding]) -> bool:
    return all(finding.ok is not False for finding in found)
