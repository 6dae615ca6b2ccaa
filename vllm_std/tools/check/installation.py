"""Whether std would start: with this vLLM, on this machine and, where one is named, for this model."""

import os
import sys
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any

from vllm_std.patches import fit
from vllm_std.patches.contract import CONTRACT
from vllm_std.patches.wrapping import vllm_version
from vllm_std.tools.check.finding import Finding, std_would_start


def all_findings(model: str | None, engine: dict[str, Any]) -> list[Finding]:
    """Everything that can be told without weights; what comes after a missing vLLM is left out.

    model: folder or hub name, or None for the installation alone; engine: arguments as `vllm.EngineArgs` names them,
    looked at only with a model.
    """
    findings = [_vllm_finding()]
    if not std_would_start(findings):
        return findings
    from vllm_std.tools.check.engine import device_finding, engine_findings  # which cannot be imported without vLLM

    findings += [_plugin_finding(), _patches_finding(), _triton_finding(), device_finding()]
    if model is not None and std_would_start(findings):
        findings += engine_findings(model, engine)
    return findings


def require_start(model: str, engine: dict[str, Any]) -> None:
    """Raise ValueError for what would end a server with std a minute after its start."""
    for finding in all_findings(model, engine):
        if finding.ok is False:
            raise ValueError(f"std would not start here: {finding.says}")


def _vllm_finding() -> Finding:
    try:
        version = vllm_version()
    except ImportError:
        return Finding("vLLM", False, f"not installed for {sys.executable}: install vllm 0.32 or 0.33 beside vllm-std.")
    if fit.tested():
        return Finding("vLLM", True, version)
    return Finding("vLLM", None, f"{version}, which was not tested: the patches below say whether it fits")


def _plugin_finding() -> Finding:
    allowed = os.environ.get("VLLM_PLUGINS")
    if not entry_points(group="vllm.general_plugins", name="std"):
        return Finding("plugin", False, "vLLM will not find it: install vllm-std with pip, not from its folder alone.")
    if allowed is not None and "std" not in allowed.split(","):
        return Finding("plugin", False, f"VLLM_PLUGINS={allowed} leaves it out: add std, or unset the variable.")
    return Finding("plugin", True, "vLLM loads it")


def _patches_finding() -> Finding:
    try:
        fit.require()
    except ValueError as error:
        return Finding("patches", False, str(error))
    names = sum(map(len, CONTRACT.values()))
    return Finding("patches", True, f"all {len(CONTRACT)} of the ledger fit, in the {names} names listed below")


def _triton_finding() -> Finding:
    if find_spec("triton") is None:
        return Finding("runner", False, "Model Runner V2 needs Triton: pip install triton.")
    return Finding("runner", True, "Triton is there for Model Runner V2")
