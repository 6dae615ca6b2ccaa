"""`vllm serve` with std under load and fault: mixed clients that come and go; then its engine is killed."""

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import requests
from helpers import ROOT, std

sys.path.insert(0, str(ROOT / "scripts/bench"))
from servers import serve, wait_for
from soak import SLACK_MIB, pool, server_process  # noqa: E402

REQUESTS = 200  # to each of two servers
BLOCKS = 17  # of 32 tokens: one request of the greatest length, or some four of the pool at once
FLAGS = ["--max-model-len", "512", "--max-num-batched-tokens", "512", "--max-num-seqs", "16", "--seed", "0"]
FLAGS += ["--num-gpu-blocks-override", str(BLOCKS)]
STD = ["--speculative-config", json.dumps(std())]


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


@pytest.fixture(scope="module")
def seen(expected, models, tmp_path_factory) -> dict[str, list]:
    """{"plain" or "std": [summary of the load, what was seen of an engine killed after it]}"""
    folder, found = tmp_path_factory.mktemp("load"), {}
    (folder / "expected.json").write_text(json.dumps(expected))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")  # a server has its engine in a process of its own
        for name, flags in {"plain": [], "std": STD}.items():
            with serve(str(models("llama")), folder / name, *FLAGS, *flags) as url:
                summary = loaded(url, folder / "expected.json")
                crowded(url)
                found[name] = [summary, killed_in_mid_request(url)]
    return found


def test_under_load_answers_are_plain_vllms_and_nothing_is_left_behind(seen):
    """A worker of plain vLLM grows as well, so it is what std's is compared with."""
    plain, drafting = seen["plain"][0], seen["std"][0]
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
    server, replies, before = server_process(url), [], metric(url, "vllm:generation_tokens_total")
    client = threading.Thread(target=lambda: replies.append(ask(url, 400, answers=64)))  # far from done when seen
    client.start()
    # A count that only grows, and the patience of a busy machine: the first step may have kernels to compile.
    wait_for(lambda: replies or metric(url, "vllm:generation_tokens_total") != before, seconds=180)
    assert not replies, replies[0].text[:2000]
    engine_of(server).kill()
    client.join(60)
    (reply,) = replies
    return reply.status_code, reply.json()["error"]["type"], server.wait(60)


def metric(url: str, name: str) -> str:
    text = requests.get(f"{url}/metrics", timeout=10).text
    return next(line for line in text.splitlines() if line.startswith(name))


def test_a_killed_engine_is_reported_as_by_plain_vllm(seen):
    status, _, ended = seen["std"][1]
    assert seen["plain"][1] == seen["std"][1]
    assert status >= 500 and ended is not None, "the client is told, and the server ends by itself"
