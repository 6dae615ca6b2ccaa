"""An engine in a process of its own, so that none can spoil, or take down, what others measure."""

import multiprocessing
import os
import time
import traceback
from contextlib import suppress
from pathlib import Path

from gpu.options import Setup

from vllm_std.patches.benchmark import without_std

# Of all sides; without a GPU also ON_CPU.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_USE_V2_MODEL_RUNNER": "1", "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1", "VLLM_HOST_IP": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "VLLM_LOGGING_LEVEL": "INFO",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
}  # fmt: skip
ON_CPU = {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
END_S = 60  # seconds for a process to end, its GPU memory with it


class SideError(Exception):
    """What went wrong in the process of a side, in one line."""


def environment(side: str, device: str) -> dict[str, str]:
    """What vLLM is to find in the environment. Plain vLLM and its own methods do not load the plugin."""
    variables = ENVIRONMENT | (ON_CPU if device == "cpu" else {})
    return variables if side.startswith("std") else variables | {"VLLM_PLUGINS": without_std()}


def serve(pipe, side: str, setup: Setup, variables: dict[str, str], log: Path) -> None:
    """Answer (method of the engine, its arguments ...) with (True, result) or (False, error), until ("end",)."""
    os.environ.update(variables)
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    print(f"-- {side} of {setup.part.title}", flush=True)
    engine = None
    while True:
        try:
            if engine is None:
                from gpu.engine import Engine  # which imports vLLM, when its environment is there

                engine = Engine(side, setup)
                pipe.send((True, engine.facts()))
                continue
            method, *arguments = pipe.recv()
            if method == "end":
                os._exit(0)  # engines in this process have nothing that must end in order
            pipe.send((True, getattr(engine, method)(*arguments)))
        except EOFError:
            os._exit(1)
        except BaseException as error:
            traceback.print_exc()
            pipe.send((False, f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"))
            if engine is None:
                os._exit(1)


class Side:
    """Starts the process and waits until its engine is up.

    until: seconds since 1970 at which nothing is waited for any more. Raises SideError, here and in `ask`, where it
    does not work, or not in time.
    """

    def __init__(self, name: str, setup: Setup, log: Path, until: float, variables: dict[str, str] | None = None):
        self.name = name
        self.until = until
        spawn = multiprocessing.get_context("spawn")
        self.pipe, there = spawn.Pipe()
        variables = environment(name, setup.device) | (variables or {})
        self.process = spawn.Process(target=serve, args=(there, name, setup, variables, log), daemon=True)
        self.process.start()
        there.close()
        try:
            self.facts = self.answer()
        except SideError:
            self.close()
            raise

    @property
    def alive(self) -> bool:
        return self.process.is_alive()

    def ask(self, method: str, *arguments):
        """Call a method of the engine."""
        self.tell(method, *arguments)
        return self.answer()

    def tell(self, method: str, *arguments) -> None:
        """The same without waiting for its `answer`."""
        try:
            self.pipe.send((method, *arguments))
        except OSError:
            raise SideError(f"the process of {self.name} is gone.") from None

    def answer(self):
        if not self.pipe.poll(max(0.0, self.until - time.time())):
            self.process.kill()
            self.process.join()
            raise SideError(f"{self.name} was stopped: the time was up.")
        try:
            well, answer = self.pipe.recv()
        except EOFError:
            self.process.join(END_S)
            raise SideError(f"the process of {self.name} ended with code {self.process.exitcode}.") from None
        if not well:
            raise SideError(f"{self.name}: {answer}")
        return answer

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        if self.alive:
            with suppress(OSError):
                self.pipe.send(("end",))
                self.process.join(END_S)
            self.process.kill()
        self.process.join()
