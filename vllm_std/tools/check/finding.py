"""What `vllm-std check` says of one thing that it looked at."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """name: of what was looked at; ok: False where std would not start, None where there is nothing to judge."""

    name: str
    ok: bool | None
    says: str


def std_would_start(findings: list[Finding]) -> bool:
    return all(finding.ok is not False for finding in findings)
