"""The parts of a day that time no engine's cells: checks, selection kernels alone, and starts."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

from gpu_parts import PARTS, Part
from gpu_report import kernels_line
from gpu_side import ON_CPU, SideError
from gpu_turns import Call

HERE = Path(__file__).resolve().parent


def check(call: Call, tiny: bool) -> None:
    for name, step in (("kernels against torch", against_torch), ("answers", answers), ("no waiting", no_waiting)):
        if call.left() < 0 or call.records.holds(what="check", name=name, ok=True):
            continue
        begun = time.time()
        try:
            well, says = step(call, tiny)
        except Exception as error:
            note(call, f"check {name}", error)
            well, says = False, str(error)
        says = says[-1500:].strip()
        call.records.add(what="check", name=name, ok=well, says=says, seconds=round(time.time() - begun, 1))
        print(f"check {name}: {'well' if well else 'FAILED'}\n{says}", flush=True)


def answers(call: Call, tiny: bool) -> tuple[bool, str]:
    options = ["--videos", "1", "--scenes", "20", "--dtype", "float32", "--block-size", "32"] if tiny else []
    return command(call, [HERE / "check_gpu.py", *options])


def against_torch(call: Call, tiny: bool) -> tuple[bool, str]:
    cases = ["-k", "float32-32-9"] if tiny else []
    options = ["-q", "-p", "no:cacheprovider", "--noconftest", "-o", "addopts=", *cases]
    return command(call, ["-m", "pytest", HERE.parent / "tests/test_kernels.py", *options])


def command(call: Call, words: list) -> tuple[bool, str]:
    """Run Python so, with whatever it starts; whether it ended well and in time, and what it printed."""
    variables = os.environ | (ON_CPU if call.device == "cpu" else {})
    options = {"stdout": subprocess.PIPE, "text": True, "env": variables, "start_new_session": True}
    with call.log.open("a") as log:
        process = subprocess.Popen([sys.executable, *map(str, words)], stderr=log, **options)
        try:
            says = process.communicate(timeout=max(1.0, call.left()))[0]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            says = process.communicate()[0] + "\nstopped: the time was up"
        log.write(says)
    return process.returncode == 0, says


def no_waiting(call: Call, tiny: bool) -> tuple[bool, str]:
    variables = {"VLLM_GPU_SYNC_CHECK": "error"} if call.device != "cpu" else {}
    with call.open("std", PARTS["7b"].shrunk(), variables=variables) as side:
        return True, "\n".join(side.ask("watch_for_waits"))


def kernels(call: Call, tiny: bool) -> None:
    """In a process of its own, whose memory the next part needs."""
    options = ["--tiny"] * tiny
    well, says = command(call, [HERE / "gpu_kernels.py", "--minutes", str(call.left() / 60), *options])
    for line in says.splitlines():
        if line.startswith("{"):
            print(kernels_line(call.records.add(what="kernels", **json.loads(line))), flush=True)
    if not well:
        raise RuntimeError(f"gpu_kernels.py ended with an error, which is in {call.log}")


def start(call: Call, tiny: bool) -> None:
    """Twice each: the first with nothing compiled, the second with what the first has left."""
    part = PARTS["never-slower"].shrunk() if tiny else PARTS["never-slower"]  # whose std has its defaults
    for side in ("plain", "std"):
        if call.left() > 0 and not call.records.holds(what="start", part="start", side=side, cache="warm"):
            try:
                start_twice(call, side, part)
            except SideError as error:
                note(call, side, error)


def start_twice(call: Call, side: str, part: Part) -> None:
    with tempfile.TemporaryDirectory() as folder:
        places = ("VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
        variables = {name: f"{folder}/{name.lower()}" for name in places}
        for cache in ("empty", "warm"):
            call.open(side, part, variables=variables, usual=True, cache=cache).close()


def note(call: Call, where: str, error: Exception) -> None:
    with call.log.open("a") as log:
        log.write(traceback.format_exc())
    call.records.add(what="failure", where=where, error=f"{type(error).__name__}: {error}")
    print(f"{where} failed: {error}", flush=True)


STEPS = {"check": check, "kernels": kernels, "start": start}
