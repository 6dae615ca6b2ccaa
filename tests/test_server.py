"""`vllm serve` with std as its users meet it: a video over the OpenAI API, streamed; metrics; a refusal at start-up."""

import subprocess
import sys

import pytest
from conftest import ROOT, SIGN_MODEL
from sign_video import SignVideo

sys.path.insert(0, str(ROOT / "scripts"))
from demo import answer, serve  # noqa: E402


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    log = tmp_path_factory.mktemp("server") / "log"
    flags = ["--speculative-method", "std", "--speculative-config.top_k", "160", "--speculative-config.recent", "32"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
        patch.setenv("VLLM_LOGGING_LEVEL", "INFO")
        with serve(str(SIGN_MODEL), log, *flags) as url:
            yield url, log


@pytest.mark.parametrize("task", ["list", "follow"])
def test_a_streamed_answer_about_a_video_is_right_and_counted(server, tmp_path, task):
    url, _ = server
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
    assert drafted == 5 * drafts > 0
    assert accepted / drafted > 0.8


def test_one_line_says_what_std_will_do(server):
    lines = {
        line[line.index("std: the target") :]
        for line in server[1].read_text().splitlines()
        if "std: the target" in line
    }
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
    vllm = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(SIGN_MODEL)]
    done = subprocess.run([*vllm, *flags], capture_output=True, text=True, timeout=200)
    assert done.returncode != 0
    assert named in (done.stdout + done.stderr)[-3000:]
