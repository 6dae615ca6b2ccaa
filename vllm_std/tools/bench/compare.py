"""A comparison of plain vLLM and std: on servers that are started for it, or on a running one."""

from dataclasses import dataclass
from typing import Any

import typer

from vllm_std import __version__
from vllm_std.patches import benchmark, probe
from vllm_std.patches.wrapping import vllm_version
from vllm_std.tools.bench.report import rows
from vllm_std.tools.bench.run import BenchSettings, run
from vllm_std.tools.bench.sides import ServerOf, own_servers, running_server
from vllm_std.tools.check.installation import require_start


@dataclass(frozen=True)
class Target:
    """What is measured: a running server at `url`, or servers of `model` that are started for the comparison.

    engine: arguments as `vllm.EngineArgs` names them; std: options of std; both for servers that are started.
    """

    model: str | None
    url: str | None
    engine: dict[str, Any]
    std: dict[str, Any]

    def servers(self) -> tuple[ServerOf, str]:
        """The servers of both sides, and the model's name. Raises ValueError for what does not work, naming it."""
        if self.url and not self.model:
            if self.engine or self.std:
                raise ValueError("--engine and --std are for servers that are started here: leave them out with --url.")
            return running_server(self.url), benchmark.model_of(self.url.rstrip("/"))[1]
        if self.model and not self.url:
            require_start(self.model, self.engine | {"speculative_config": {"method": "std"} | self.std})
            return own_servers(self.model, self.engine, self.std), self.model
        raise ValueError("give --model, to start servers with, or --url, of a running one.")


def compare(target: Target, settings: BenchSettings) -> dict[str, Any]:
    """Settings, device and a row for each concurrency, as results.json has them. Raises ValueError as `servers`."""
    server_of, name = target.servers()
    device = probe.device()
    one_server = bool(target.url)
    at_once = one_server or device["platform"] == "cpu"
    results = run(settings, server_of, one_server, at_once, lambda text: typer.echo(text, err=True))
    said = {
        "model": name,
        "one_server": one_server,
        "prompts": len(settings.prompts),
        "tokens": settings.tokens,
        "repeats": settings.repeats,
        "temperature": settings.temperature,
        "engine": target.engine,
        "std": target.std,
        "vllm": vllm_version(),
        "vllm_std": __version__,
    }
    return {"settings": said, "device": device["name"] or device["platform"], "rows": rows(results)}
