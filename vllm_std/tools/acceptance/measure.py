"""Measures what is missing of a grid, as the command's options describe it."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_std.tools.acceptance import run
from vllm_std.tools.acceptance.grid import make_cells
from vllm_std.tools.acceptance.records import Records
from vllm_std.tools.acceptance.settings import LabSettings
from vllm_std.tools.console import terminal
from vllm_std.tools.prompts import digest, load_prompts


@dataclass(frozen=True)
class Options:
    """The grid, as values separated by commas; files and folders of prompts; the policy of --against."""

    policy: str
    k: str
    gamma: str
    refresh: str
    temperature: str
    prompts: list[Path]
    videos: list[Path]
    against: str | None


def measure(model: str, options: Options, engine: dict[str, Any], out: Path, **asks) -> Records:
    """The records of the folder `out`, with those added that were missing.

    engine: arguments as `vllm.EngineArgs` names them; asks: the further fields of `LabSettings`. Raises ValueError for
    options that do not work, and where the records were made with other settings.
    """
    cells = make_cells(options.policy, options.k, options.gamma, options.refresh, options.temperature)
    if options.against not in {None, *(cell.policy for cell in cells)}:
        raise ValueError(f"--against {options.against} is not in --policy {options.policy}: add it there.")
    prompts = load_prompts(options.prompts, options.videos)
    settings = LabSettings(model=model, cells=cells, engine=engine, **asks)
    records = Records(out)
    records.require(**settings.recorded(), prompts=digest(prompts))
    if run.missing(settings, prompts, records):
        run.run(run.start(settings, options.videos), settings, prompts, records, terminal(sys.stderr))
    return records
