"""The parts of a day that time no engine's cells: checks, selection kernels alone, and starts."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gpu.call import Call
from gpu.parts import PARTS, Part
from gpu.report import kernels_line
from gpu.side import ON_CPU, SideError

ROOT = Path(__file__).resolve().parents[2]
SAID = 1500  # characters of a check's output that its record holds, from the end
TINY_ANSWERS = ["--videos", "1", "--scenes", "20", "--dtype", "float32", "--block-size", "32"]
CACHES = ("VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")  # where compiled code is kept


def check(call: Call, tiny: bool) -> None:
    for name, step in CHECKS.items():
        if call.seconds_left() < 0 or call.records.has(what="check", name=name, ok=True):
            continue
        begun = time.time()
        try:
            well, says = step(call, tiny)
        except Exception as error:
            call.note_failure(f"check {name}", error)
            well, says = False, str(error)
        says = says[-SAID:].strip()
        call.records.add(what="check", name=name, ok=well, says=says, seconds=round(time.time() - begun, 1))
        print(f"check {name}: {'well' if well else 'FAILED'}\n{says}", flush=True)


def kernels_against_torch(call: Call, tiny: bool) -> tuple[bool, str]:
    cases = ["-k", "float32-32-9"] if tiny else []
    options = ["-q", "-p", "no:cacheprovider", "--noconftest", "-o", "addopts=", *cases]
    return run_python(call, ["-m", "pytest", ROOT / "tests/test_kernels.py", *options])


def right_answers(call: Call, tiny: bool) -> tuple[bool, str]:
    return run_python(call, ["-m", "gpu.answers", *(TINY_ANSWERS if tiny else [])])


def no_waiting(call: Call, tiny: bool) -> tuple[bool, str]:
    variables = {"VLLM_GPU_SYNC_CHECK": "error"} if call.device != "cpu" else {}
    with call.open("std", PARTS["7b"].shrunk(), variables=variables) as side:
        return True, "\n".join(side.ask("watch_for_waits"))


def run_python(call: Call, words: list) -> tuple[bool, str]:
    """Run Python so, with whatever it starts; whether it ended well and in time, and what it printed."""
    variables = os.environ | (ON_CPU if call.device == "cpu" else {})
    with call.log.open("a") as log:
        process = subprocess.Popen(
            [sys.executable, *map(str, words)], stdout=subprocess.PIPE, stderr=log, text=True, env=variables,
            start_new_session=True,
        )  # fmt: skip
        try:
            says = process.communicate(timeout=max(1.0, call.seconds_left()))[0]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            says = process.communicate()[0] + "\nstopped: the time was up"
        log.write(says)
    return process.returncode == 0, says


def kernels(call: Call, tiny: bool) -> None:
    """In a process of its own, whose memory the next part needs."""
    minutes = str(call.seconds_left() / 60)
    well, says = run_python(call, ["-m", "gpu.kernels", "--minutes", minutes, *["--tiny"] * tiny])
    for line in says.splitlines():
        if line.startswith("{"):
            print(kernels_line(call.records.add(what="kernels", **json.loads(line))), flush=True)
    if not well:
        raise RuntimeError(f"gpu.kernels ended with an error, which is in {call.log}")


def start(call: Call, tiny: bool) -> None:
    """Twice each: the first with nothing compiled, the second with what the first has left."""
    part = PARTS["never-slower"].shrunk() if tiny else PARTS["never-slower"]  # whose std has its defaults
    for side in ("plain", "std"):
        if call.seconds_left() > 0 and not call.records.has(what="start", part="start", side=side, cache="warm"):
            try:
                _start_twice(call, side, part)
            except SideError as error:
                call.note_failure(side, error)


def _start_twice(call: Call, side: str, part: Part) -> None:
    with tempfile.TemporaryDirectory() as folder:
        variables = {name: f"{folder}/{name.lower()}" for name in CACHES}
        for cache in ("empty", "warm"):
            call.open(side, part, variables=variables, usual=True, cache=cache).close()


CHECKS = {"kernels against torch": kernels_against_torch, "answers": right_answers, "no waiting": no_waiting}
STEPS = {"check": check, "kernels": kernels, "start": start}
