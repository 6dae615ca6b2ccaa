"""`vllm serve` with std as its users meet it: a video over the OpenAI API, streamed; metrics; a refusal at start-up."""

import base64
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import requests
from conftest import SIGN_MODEL
from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families
from sign_video import SignVideo

SERVE = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(SIGN_MODEL), "--enforce-eager"]
SERVE += ["--dtype", "float32", "--block-size", "32", "--max-model-len", "2048", "--max-num-batched-tokens", "2048"]
SERVE += ["--max-num-seqs", "4", "--served-model-name", "sign", "--host", "127.0.0.1"]
ENV = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_LOGGING_LEVEL": "INFO"}


@contextlib.contextmanager
def serve(log, *flags):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with open(log, "w") as out:
        command = [*SERVE, "--port", str(port), *flags]
        server = subprocess.Popen(command, stdout=out, stderr=out, env=ENV, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            with contextlib.suppress(requests.ConnectionError):
                if requests.get(f"{url}/health", timeout=5).ok:
                    break
            assert server.poll() is None, log.read_text()[-3000:]
            time.sleep(1)
        yield url
    finally:
        os.killpg(server.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    log = tmp_path_factory.mktemp("server") / "log"
    flags = ["--speculative-method", "std", "--speculative-config.top_k", "160", "--speculative-config.recent", "32"]
    with serve(log, *flags) as url:
        yield url, log


def counters(url) -> dict[str, float]:
    families = text_string_to_metric_families(requests.get(f"{url}/metrics", timeout=30).text)
    return {s.name: s.value for f in families for s in f.samples if "spec_decode" in s.name and "position" not in s.labels}


def ask(url, video: SignVideo, question: str, path) -> str:
    video.write(path)
    data = "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()
    content = [{"type": "video_url", "video_url": {"url": data}}, {"type": "text", "text": question}]
    stream = OpenAI(base_url=f"{url}/v1", api_key="none").chat.completions.create(
        model="sign", messages=[{"role": "user", "content": content}], temperature=0, max_tokens=200, stream=True
    )
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


@pytest.mark.parametrize("task", ["list", "follow"])
def test_a_streamed_answer_about_a_video_is_right_and_counted(server, tmp_path, task):
    url, _ = server
    video = SignVideo(scenes=60, seed=5)
    asked = video.ask(task, sentences=4)
    before = counters(url)
    assert ask(url, video, asked["question"], tmp_path / "video.mp4") == asked["answer"]
    after = counters(url)
    prefix = "vllm:spec_decode_num_"
    drafts, drafted, accepted = (
        after[f"{prefix}{name}_total"] - before[f"{prefix}{name}_total"]
        for name in ("drafts", "draft_tokens", "accepted_tokens")
    )
    assert drafted == 5 * drafts > 0
    assert accepted / drafted > 0.8


def test_one_line_says_what_std_will_do(server):
    lines = {line[line.index("std: the target") :] for line in server[1].read_text().splitlines() if "std: the target" in line}
    (line,) = lines
    for part in ("5 tokens a round", "160 tokens", "5 blocks of 32", "selection=verify", "all 8 attention", "CPU_ATTN"):
        assert part in line


@pytest.mark.parametrize(
    "flags,named",
    [
        (["--speculative-method", "std", "--spec-tokens", "0"], "num_speculative_tokens=0"),
        (["--speculative-method", "std", "--pipeline-parallel-size", "2"], "--pipeline-parallel-size=2"),
    ],
)
def test_a_server_that_cannot_start_says_why_in_one_sentence(flags, named):
    done = subprocess.run([*SERVE, *flags], capture_output=True, text=True, env=ENV, timeout=200)
    assert done.returncode != 0
    assert named in (done.stdout + done.stderr)[-3000:]
