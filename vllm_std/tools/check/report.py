"""The findings for a terminal, and for programs."""

from dataclasses import asdict
from typing import Any

from rich.table import Table

from vllm_std.patches import fit
from vllm_std.patches.contract import CONTRACT
from vllm_std.tools.check.finding import Finding, std_would_start

MARKS = {True: "[green]ok[/]", False: "[red]no[/]", None: ""}


def findings_table(findings: list[Finding]) -> Table:
    table = Table(show_header=False, box=None)
    for finding in findings:
        table.add_row(MARKS[finding.ok], finding.name, finding.says)
    return table


def patches_table(findings: list[Finding]) -> Table:
    """The names of vLLM's inside that each patch uses."""
    table = Table("", "patch", "uses in vLLM", box=None)
    for name in _used_names(findings):
        module, _, path = name["where"].partition(":")
        table.add_row(MARKS[name["misfit"] is None], name["patch"], f"{name['how']} {module} {path}".rstrip())
    return table


def as_json(findings: list[Finding]) -> dict[str, Any]:
    return {
        "ok": std_would_start(findings),
        "findings": [asdict(finding) for finding in findings],
        "patches": _used_names(findings),
    }


def _used_names(findings: list[Finding]) -> list[dict[str, Any]]:
    """What each patch needs of vLLM, and what does not fit (None where it does); empty where vLLM is not installed."""
    if all(finding.name != "patches" for finding in findings):
        return []
    return [
        {"patch": name, "how": need.how, "where": need.where, "what": need.what, "misfit": fit.first_misfit((need,))}
        for name, needs in CONTRACT.items()
        for need in needs
    ]
