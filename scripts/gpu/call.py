"""One call of the command: how long it may take, and the engines it starts."""

import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from gpu.options import Setup
from gpu.parts import Part
from gpu.records import Records
from gpu.side import Side

GRACE_S = 20  # seconds after the time is up in which an engine may still end what it does


@dataclass
class Call:
    """until: seconds since 1970 after which nothing new begins; memory: share of the GPU; text_model: of SmolLM2."""

    records: Records
    log: Path
    until: float
    device: str
    memory: float
    text_model: Path

    def seconds_left(self) -> float:
        return self.until - time.time()

    def open(self, name: str, part: Part, memory: float = 1.0, variables=None, usual=False, cache="any") -> Side:
        """Start an engine and record what its start took.

        memory: share of what the call may take; variables: environment; usual: as `Setup`; cache: what the engine
        finds compiled, for the record.
        """
        setup = Setup(part, self.device, memory * self.memory, self.text_model, usual)
        side = Side(name, setup, self.log, self.until + GRACE_S, variables)
        self.records.add(what="start", side=name, options=part.sides.get(name), cache=cache, **side.facts)
        seconds, tokens = side.facts["seconds"]["to_start"], side.facts["kv_tokens"]
        print(f"{name}: up in {seconds:.0f} s, room for {tokens:,} tokens of KV", flush=True)
        return side

    def note_failure(self, where: str, error: Exception) -> None:
        """Of what is being handled."""
        with self.log.open("a") as log:
            log.write(traceback.format_exc())
        self.records.add(what="failure", where=where, error=f"{type(error).__name__}: {error}")
        print(f"{where} failed: {error}", flush=True)
