"""Servers for tests: `vllm serve` in a process of its own, asked over the OpenAI client."""

import base64
import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import requests
import torch
from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families


@contextlib.contextmanager
def serve(model: str, log: Path, *flags: str):
    """Run `vllm serve` until the block ends; yields its base URL. Its output goes to `log`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | ({"HF_HUB_OFFLINE": "1"} if Path(model).exists() else {})
    hardware = []
    if not torch.cuda.is_available():
        hardware = ["--dtype", "float32", "--block-size", "32", "--enforce-eager", "--skip-mm-profiling"]
        env.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", model, "--host", "127.0.0.1"]
    command += ["--port", str(port), "--max-model-len", "8192", "--max-num-batched-tokens", "8192"]
    command += ["--max-num-seqs", "8", "--served-model-name", "demo", *hardware, *flags]
    print("\n$ vllm serve", model, shlex.join(flags), file=sys.stderr)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as out:
        server = subprocess.Popen(command, stdout=out, stderr=out, env=env, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_up(server, url, log)
        yield url
    finally:
        stop(server)


def stop(server: subprocess.Popen) -> None:
    """End the server and all it started; nothing is left running."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(15)
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def wait_until_up(server: subprocess.Popen, url: str, log: Path) -> None:
    begun = time.time()
    while True:
        with contextlib.suppress(requests.ConnectionError):
            if requests.get(f"{url}/health", timeout=5).ok:
                break
        if server.poll() is not None:
            sys.exit(f"vllm serve ended early; the end of {log}:\n" + "\n".join(log.read_text().splitlines()[-15:]))
        print(f"\r  starting ... {time.time() - begun:.0f} s", end="", file=sys.stderr, flush=True)
        time.sleep(1)
    print(f"\r  up after {time.time() - begun:.0f} s      ", file=sys.stderr)
    for line in log.read_text().splitlines():
        if "std: the target drafts" in line:
            print("  " + line[line.index("std:") :], file=sys.stderr)


def counters(url: str) -> dict[str, float]:
    """vLLM's own counters, by name without prefix."""
    families = text_string_to_metric_families(requests.get(f"{url}/metrics", timeout=30).text)
    return {s.name.removeprefix("vllm:"): s.value for f in families for s in f.samples if not s.labels.get("le")}


def answer(url: str, video: Path, question: str, max_tokens: int) -> tuple[str, int, dict[str, float]]:
    """Ask, print the answer as it arrives; returns text, number of tokens, and what the counters gained."""
    before = counters(url)
    data = "data:video/mp4;base64," + base64.b64encode(video.read_bytes()).decode()
    content = [{"type": "video_url", "video_url": {"url": data}}, {"type": "text", "text": question}]
    stream = OpenAI(base_url=f"{url}/v1", api_key="none").chat.completions.create(
        model="demo", messages=[{"role": "user", "content": content}], temperature=0, max_tokens=max_tokens,
        stream=True, stream_options={"include_usage": True},
    )  # fmt: skip
    text, tokens = "", 0
    for chunk in stream:
        piece = (chunk.choices[0].delta.content or "") if chunk.choices else ""
        text, tokens = text + piece, chunk.usage.completion_tokens if chunk.usage else tokens
        print(piece, end="", flush=True)
    print()
    after = counters(url)
    return text, tokens, {name: after[name] - before.get(name, 0) for name in after}


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Raises AssertionError where it does not come true within so many seconds."""
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "it did not happen"
        time.sleep(0.02)
