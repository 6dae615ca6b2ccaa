"""`vllm serve` with std as its users meet it: a video over the OpenAI API, streamed; metrics; a refusal at start-up."""

import base64
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from helpers import ROOT, SIGN_MODEL
from servers import answer, counters, serve, wait_for

from vllm_std.tools.demo.sign_video import SignVideo


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    log = tmp_path_factory.mktemp("server") / "log"
    flags = ["--speculative-method", "std", "--speculative-config.top_k", "160", "--speculative-config.recent", "32"]
    flags += ["--speculative-config.adaptive", "false", "--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
        patch.setenv("VLLM_LOGGING_LEVEL", "INFO")
        patch.setenv("VLLM_LOG_STATS_INTERVAL", "2")
        patch.setenv("VLLM_SERVER_DEV_MODE", "1")
        with serve(str(SIGN_MODEL), log, *flags) as url:
            yield url, log


@pytest.mark.parametrize("task", ["list", "follow"])
def test_a_streamed_answer_about_a_video_is_right_and_counted(server, tmp_path, task):
    url, log = server
    video = SignVideo(scenes=60, seed=5)
    asked = video.ask(task, sentences=4)
    video.write(tmp_path / "video.mp4")
    text, tokens, gained = answer(url, tmp_path / "video.mp4", asked["question"], max_tokens=200)
    assert text == asked["answer"]
    drafts, drafted, accepted = (
        gained[f"spec_decode_num_{name}_total"] for name in ("drafts", "draft_tokens", "accepted_tokens")
    )
    assert gained["generation_tokens_total"] == tokens
    assert gained["iteration_tokens_total_count"] <= drafts + 2, "one pass per round, and the prompt's"
    assert drafted == 8 * drafts > 0
    assert accepted / drafted > 0.8
    assert gained["std_draft_length_count"] > drafts
    wait_for(lambda: "std metrics: Mean draft length" in log.read_text())  # vLLM logs every ten seconds


def client(*arguments) -> subprocess.CompletedProcess:
    """scripts/examples/client.py, as it stands."""
    command = [sys.executable, ROOT / "scripts/examples/client.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("flags", [[], ["--plain"]])
def test_the_client_streams_the_answer(server, tmp_path, flags):
    video = SignVideo(scenes=20, seed=7)
    asked = video.ask("list", sentences=2)
    video.write(tmp_path / "video.mp4")
    done = client(tmp_path / "video.mp4", asked["question"], "--url", server[0], *flags)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == asked["answer"]
    assert "tokens of prompt; the first token after" in done.stderr


@pytest.mark.parametrize("there, says", [(True, "400"), (False, "Connection error")])
def test_what_the_client_cannot_have_answered_is_one_sentence(server, tmp_path, there, says):
    """A video that cannot be read, and a server that is not there."""
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    url = server[0] if there else "http://127.0.0.1:9"
    done = client(tmp_path / "broken.mp4", "Why?", "--url", url)
    (line,) = done.stderr.strip().splitlines()
    assert done.returncode == 1 and line.startswith(f"client.py: {url}: ") and says in line


def about(url: str, video: bytes, question: str, drafts: bool) -> tuple[int, str]:
    """(status, answer or error) of a question about the bytes of a video."""
    data = "data:video/mp4;base64," + base64.b64encode(video).decode()
    content = [{"type": "video_url", "video_url": {"url": data}}, {"type": "text", "text": question}]
    body = {"model": "demo", "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 120}
    reply = requests.post(f"{url}/v1/chat/completions", json=body | {"vllm_xargs": {"std": drafts}}, timeout=120)
    said = reply.json()
    return reply.status_code, said["choices"][0]["message"]["content"] if reply.ok else said["error"]["message"]


@pytest.mark.supports("corrupt videos beside good ones")
def test_a_corrupt_video_costs_its_own_request_only(server, tmp_path):
    """It gets the error that it gets without drafts; whoever asks beside it is answered."""
    videos, asked = [SignVideo(scenes=20, seed=seed) for seed in (3, 4)], []
    for number, video in enumerate(videos):
        asked.append(video.ask("list", sentences=3))
        video.write(tmp_path / f"{number}.mp4")
    good = [(tmp_path / f"{number}.mp4").read_bytes() for number in range(2)]
    given = [good[0], good[1][: len(good[1]) // 2], good[1], b"no video at all", good[0]]
    questions = [asked[number]["question"] for number in (0, 1, 1, 0, 0)]
    with ThreadPoolExecutor(len(given)) as clients:
        sides = [
            list(clients.map(lambda video, question: about(server[0], video, question, drafts), given, questions))
            for drafts in (False, True)
        ]
    assert sides[0] == sides[1]
    right = [asked[number]["answer"] for number in (0, 1, 0)]
    assert [answer for answer in sides[1] if answer[0] == 200] == [(200, text) for text in right]
    assert all(status >= 400 and message for status, message in (sides[1][1], sides[1][3]))


def test_a_request_can_opt_out_of_drafting(server):
    """An operator compares on one server; what is neither true nor false is refused."""
    url, _ = server
    asked = {"messages": [{"role": "user", "content": "Hello"}], "temperature": 0, "max_tokens": 12, "ignore_eos": True}
    asked["model"] = "demo"
    drafted, texts = [], []
    for said in (False, True, "no"):
        before = counters(url)["spec_decode_num_draft_tokens_total"]
        reply = requests.post(f"{url}/v1/chat/completions", json=asked | {"vllm_xargs": {"std": said}}, timeout=120)
        drafted.append(counters(url)["spec_decode_num_draft_tokens_total"] - before)
        texts.append(reply.json())
    assert texts[0]["choices"][0]["message"] == texts[1]["choices"][0]["message"]
    assert drafted[0] == 0 < drafted[1]
    assert reply.status_code == 400 and "std='no' is neither true nor false" in reply.text


TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {
                "scenes": {"type": "array", "items": {"enum": [1, 2, 3]}, "maxItems": 6},
                "where": {"enum": ["upper left", "lower right"]},
            },
            "required": ["scenes", "where"],
            "additionalProperties": False,
        },
    },
}


@pytest.mark.supports("tool calls")
def test_a_tool_call_is_plain_decodings(server):
    """Its arguments are held to their schema by xgrammar, which drops the drafts that do not keep to it."""
    url, _ = server
    asked = {"model": "demo", "messages": [{"role": "user", "content": "Look at scenes 1 to 6."}], "temperature": 0}
    asked |= {
        "max_tokens": 200,
        "frequency_penalty": 2.0,
        "tools": [TOOL],
        "tool_choice": {"type": "function", "function": {"name": "look"}},
    }
    calls, drafted = [], []
    for said in (False, True):
        before = counters(url)["spec_decode_num_draft_tokens_total"]
        reply = requests.post(f"{url}/v1/chat/completions", json=asked | {"vllm_xargs": {"std": said}}, timeout=120)
        drafted.append(counters(url)["spec_decode_num_draft_tokens_total"] - before)
        (call,) = reply.json()["choices"][0]["message"]["tool_calls"]
        calls.append(call["function"])
    assert calls[0] == calls[1] and drafted[0] == 0
    assert json.loads(calls[1]["arguments"])["where"] in ("upper left", "lower right")


@pytest.mark.supports("/reset_prefix_cache")
def test_the_prefix_cache_is_reset_between_requests(server):
    url, _ = server
    asked = {"model": "demo", "prompt": "Scene " * 100, "temperature": 0, "max_tokens": 12, "ignore_eos": True}
    texts = []
    for _ in range(2):
        texts.append(requests.post(f"{url}/v1/completions", json=asked, timeout=120).json()["choices"][0]["text"])
        assert requests.post(f"{url}/reset_prefix_cache", timeout=30).status_code == 200
    assert texts[0] == texts[1]


def test_one_line_says_what_std_will_do(server):
    lines = {
        line[line.index("std: the target") :]
        for line in server[1].read_text().splitlines()
        if "std: the target" in line
    }
    (line,) = lines
    for part in ("8 tokens a round", "160 tokens", "5 blocks of 32", "selection=verify", "all 8 attention", "CPU_ATTN"):
        assert part in line


def test_a_server_that_cannot_start_says_why_in_one_sentence():
    """test_config.py has the other options that are refused."""
    vllm = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(SIGN_MODEL)]
    flags = ["--speculative-method", "std", "--pipeline-parallel-size", "2"]
    done = subprocess.run([*vllm, *flags], capture_output=True, text=True, timeout=200)
    assert done.returncode != 0
    assert "--pipeline-parallel-size=2" in (done.stdout + done.stderr)[-3000:]
