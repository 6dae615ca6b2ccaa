"""`vllm serve` with std under load and fault: mixed clients that come and go, and an engine killed in mid-request."""

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import requests
from conftest import ROOT, std

sys.path.insert(0, str(ROOT / "scripts/bench"))
from servers import serve, wait_for
from soak import SLACK_MIB, pool, server_process  # noqa: E402

REQUESTS = 300  # to each of two servers; two cores answer some four a second, their kernels interpreted
BLOCKS = 17  # of 32 tokens: one request of the greatest length, or some four of the pool at once
FLAGS = ["--max-model-len", "512", "--max-num-batched-tokens", "512", "--max-num-seqs", "16", "--seed", "0"]
FLAGS += ["--num-gpu-blocks-override", str(BLOCKS)]
STD = ["--speculative-config", json.dumps(std())]


@pytest.fixture(autouse=True)
def processes(monkeypatch):
    """A server has its engine in a process of its own, and says what befalls it."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "INFO")


@pytest.fixture(scope="module")
def expected(engines, models) -> list[list[int]]:
    """What plain vLLM answers to the pool, one request at a time."""
    from vllm import SamplingParams

    llm, answers = engines(models("llama")), []
    for body in pool():
        options = {name: value for name, value in body.items() if name != "prompt"}
        prompt = {"prompt_token_ids": body["prompt"]}
        (out,) = llm.generate(prompt, SamplingParams(**options), use_tqdm=False)
        answers.append(list(out.outputs[0].token_ids))
    engines.close()
    return answers


def loaded(url: str, answers: Path) -> dict:
    """The summary of a soak, without its own judgement of memory."""
    command = [sys.executable, ROOT / "scripts/bench/soak.py", "--url", url, "--expect", answers, "--slack", "1000"]
    done = subprocess.run([*command, "--requests", str(REQUESTS)], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    print(done.stdout)
    return json.loads(done.stdout)


def test_under_load_answers_are_plain_vllms_and_nothing_is_left_behind(expected, models, tmp_path):
    """With an interpreted Triton a worker of plain vLLM grows as well, so it is what std's is compared with."""
    answers, summaries = tmp_path / "expected.json", []
    answers.write_text(json.dumps(expected))
    for name, flags in {"plain": [], "std": STD}.items():
        with serve(str(models("llama")), tmp_path / name, *FLAGS, *flags) as url:
            summaries.append(loaded(url, answers))
            crowded(url)
    plain, drafting = summaries
    total = {
        name: sum(phase[name] for phase in drafting["phases"]) for name in drafting["phases"][0] if name != "rss_mib"
    }
    assert total["requests"] == REQUESTS and total["errors"] == 0
    assert min(total["disconnects"], total["refused"]) > 0
    assert 0 < total["accepted"] < total["drafted"]
    grown = drafting["grown_mib"]
    assert grown["server"] < SLACK_MIB and grown["enginecore"] < SLACK_MIB
    assert grown["worker"] < max(0, plain["grown_mib"]["worker"]) + SLACK_MIB


def crowded(url: str) -> None:
    """Whether the soak preempts depends on the pace of arrivals; eight that grow at once do so surely."""
    with ThreadPoolExecutor(8) as clients:
        replies = list(clients.map(lambda _: ask(url, 100), range(8)))
    assert len({reply.json()["choices"][0]["text"] for reply in replies}) == 1
    assert float(metric(url, "vllm:num_preemptions_total").split()[-1]) > 0


def ask(url: str, max_tokens: int, answers: int = 1) -> requests.Response:
    """Greedy, but for several answers, which vLLM gives to sampling alone."""
    body = {"model": "demo", "prompt": [7] * 40, "max_tokens": max_tokens, "ignore_eos": True}
    body["temperature"] = float(answers > 1)
    return requests.post(f"{url}/v1/completions", json=body | {"n": answers}, timeout=240)


def engine_of(server: psutil.Process) -> psutil.Process:
    (engine,) = [child for child in server.children(recursive=True) if "EngineCore" in child.name()]
    return engine


def killed_in_mid_request(url: str) -> tuple[int, str, int | None]:
    """What a client sees of it (status, type of error), and the exit status with which the server ends by itself."""
    server, replies = server_process(url), []
    client = threading.Thread(target=lambda: replies.append(ask(url, 400, answers=64)))  # far from done when seen
    client.start()
    # A count that only grows, and the patience of a busy machine: the first step may have kernels to compile.
    wait_for(lambda: replies or not metric(url, "vllm:generation_tokens_total").endswith(" 0.0"), seconds=180)
    assert not replies, replies[0].text[:2000]
    engine_of(server).kill()
    client.join(60)
    (reply,) = replies
    return reply.status_code, reply.json()["error"]["type"], server.wait(60)


def metric(url: str, name: str) -> str:
    text = requests.get(f"{url}/metrics", timeout=10).text
    return next(line for line in text.splitlines() if line.startswith(name))


def test_a_killed_engine_is_reported_as_by_plain_vllm_and_a_restart_serves(models, tmp_path):
    seen = []
    for name, flags in {"plain": [], "std": STD}.items():
        with serve(str(models("llama")), tmp_path / name, *FLAGS, *flags) as url:
            seen.append(killed_in_mid_request(url))
    assert seen[0] == seen[1]
    assert seen[1][0] >= 500 and seen[1][2] is not None, "the client is told, and the server ends by itself"
    with serve(str(models("llama")), tmp_path / "again", *FLAGS, *STD) as url:
        assert ask(url, 8).json()["usage"]["completion_tokens"] == 8
