"""The demo behind demo.sh: one video question to std and to plain vLLM, over real servers and the OpenAI client."""

import argparse
import base64
import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import requests
import torch
from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache/demo"
BUNDLED = ROOT / "scripts/demo_model/tiny-sign-vlm"
sys.path.insert(0, str(BUNDLED.parent))
from sign_video import SignVideo  # noqa: E402


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=str(BUNDLED), help="folder or hub name; default: the bundled one")
    parser.add_argument("--video", type=Path, help="an mp4; default: a generated one of 1,800 visual tokens")
    parser.add_argument("--question", help="needed with --video")
    parser.add_argument("--policy", default="verify", help="verify, exact, text, streaming or random")
    parser.add_argument("--top-k", type=int, default=192, help="tokens of context a draft step attends to")
    parser.add_argument("--gamma", type=int, default=5, help="draft length")
    parser.add_argument("--max-tokens", type=int, default=400)
    args = parser.parse_args()
    if args.video and not args.question:
        parser.error("--video needs --question")
    return args


def bundled_video() -> tuple[Path, str, str]:
    """A generated video, a question that walks through it in no order, and the right answer."""
    path = CACHE / "signs.mp4"
    path.parent.mkdir(parents=True, exist_ok=True)
    video = SignVideo(scenes=100, seed=1)
    video.write(path)
    asked = video.ask("list", sentences=9)
    return path, asked["question"], asked["answer"]


@contextlib.contextmanager
def serve(model: str, log: Path, *flags: str):
    """Run `vllm serve` until the block ends; yields its base URL. Its output goes to `log`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | ({"HF_HUB_OFFLINE": "1"} if Path(model).exists() else {})
    hardware = []
    if not torch.cuda.is_available():
        hardware = ["--dtype", "float32", "--block-size", "32", "--enforce-eager"]
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


def main() -> None:
    args = parse()
    right = None
    if not args.video:
        args.video, asked, right = bundled_video()
        args.question, right = args.question or asked, right if args.question in (None, asked) else None
    print(f"video:    {args.video}\nquestion: {args.question}", file=sys.stderr)
    options = {"adaptive": False, "num_speculative_tokens": args.gamma, "top_k": args.top_k, "selection": args.policy}
    with serve(
        args.model, CACHE / "std.log", "--speculative-method", "std", "--speculative-config", json.dumps(options)
    ) as url:
        text, tokens, gained = answer(url, args.video, args.question, args.max_tokens)
    with serve(args.model, CACHE / "plain.log") as url:
        plain, _, plain_gained = answer(url, args.video, args.question, args.max_tokens)
    drafted = int(gained["spec_decode_num_draft_tokens_total"])
    accepted = int(gained["spec_decode_num_accepted_tokens_total"])
    drafts = int(gained["spec_decode_num_drafts_total"])
    result = {
        "tokens": tokens,
        "greedy_equal": text == plain,
        "drafted": drafted,
        "accepted": accepted,
        "acceptance_rate": round(accepted / drafted, 4) if drafted else None,
        "mean_acceptance_length": round(1 + accepted / drafts, 3) if drafts else None,
        "target_passes": int(gained["iteration_tokens_total_count"]),
        "plain_target_passes": int(plain_gained["iteration_tokens_total_count"]),
        "policy": args.policy,
        "top_k": args.top_k,
        "gamma": args.gamma,
    }
    if right is not None:
        result["answer_is_right"] = text == right
    print(json.dumps(result))


if __name__ == "__main__":
    main()
