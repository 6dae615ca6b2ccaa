"""What `vllm bench serve` runs, and how `vllm bench sweep` starts a server: vLLM's own, for `vllm-std bench`."""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Any

from vllm_std.patches.wrapping import Patch

BENCH = Patch(
    name="bench",
    replaces=(
        "vllm.benchmarks.serve.benchmark and get_first_model_from_server, vllm.benchmarks.sweep.server.ServerProcess "
        "(called); `vllm-std bench` and `demo` alone go there"
    ),
    why="`vllm bench serve` has no dataset of a user's own videos, and writes its results to files of its own",
    upstream="none",
    remove_when="vllm bench serve takes chat messages from a file",
)

START_S, GONE_S = 3600, 60  # a 72B takes minutes to load and compile


def without_std() -> str:
    """The general plugins of vLLM that are installed here, std left out, as VLLM_PLUGINS names them."""
    found = [point.name for point in entry_points(group="vllm.general_plugins") if point.name != "std"]
    asked = os.environ.get("VLLM_PLUGINS")
    return ",".join(name for name in found if asked is None or name in asked.split(","))


@contextlib.contextmanager
def served(model: str, options: dict[str, Any]) -> Iterator[str]:
    """Run `vllm serve` until the block ends; yields its base URL. options: as `vllm.EngineArgs` names them; without a
    `speculative_config` the server does not load this plugin.

    Raises ValueError where the server ends before it is up; it has said why on stderr by then.
    """
    from vllm.benchmarks.sweep.server import ServerProcess
    from vllm.utils.network_utils import get_open_port

    port = str(get_open_port())
    plugins = [] if "speculative_config" in options else ["env", f"VLLM_PLUGINS={without_std()}"]
    command = [*plugins, sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", model, "--host", "127.0.0.1"]
    server = ServerProcess([*command, "--port", port, *flags(options)], [], show_stdout=False)
    try:
        with server:
            server.wait_until_ready(START_S)
            yield f"http://127.0.0.1:{port}"
            server.stop()
            _wait_until_gone(server._server_process)
    except (RuntimeError, TimeoutError) as error:
        raise ValueError(f"vllm serve {model} did not start ({error}); what it says is above.") from None


def _wait_until_gone(process) -> None:
    """The next server needs the memory of all processes of this one."""
    process.wait(GONE_S)
    for _ in range(10 * GONE_S):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 0)
            asyncio.run(asyncio.sleep(0.1))
            continue
        return


def flags(options: dict[str, Any]) -> list[str]:
    """{"max_model_len": 4096, "enforce_eager": True} as ["--max-model-len", "4096", "--enforce-eager"]."""
    words = []
    for name, value in options.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", value if isinstance(value, str) else json.dumps(value)]
    return words


def model_of(url: str) -> tuple[str, str]:
    """(name in requests, folder or hub name) of what a server serves. Raises ValueError where none answers."""
    from vllm.benchmarks.serve import get_first_model_from_server

    try:
        return asyncio.run(get_first_model_from_server(url))
    except RuntimeError:
        raise ValueError(
            f"no vLLM server answers at {url}: give the address of one, as http://localhost:8000."
        ) from None


def measure(
    url: str, conversations: list[list[dict]], tokens: int, concurrency: int, body: dict[str, Any]
) -> dict[str, Any]:
    """The result of `vllm bench serve` with chat completions of at most `tokens` tokens, `concurrency` at a time.

    conversations: messages of each request; body: fields that all requests have besides. Prints vLLM's own report.
    """
    from vllm.benchmarks import serve
    from vllm.benchmarks.datasets import SampleRequest
    from vllm.tokenizers import get_tokenizer

    name, model = model_of(url)
    requests = [
        SampleRequest(
            prompt="", prompt_len=0, expected_output_len=tokens, request_id=str(number), chat_messages=messages
        )
        for number, messages in enumerate(conversations)
    ]
    return asyncio.run(
        serve.benchmark(
            task_type=serve.TaskType.GENERATION, endpoint_type="openai-chat",
            api_url=f"{url}/v1/chat/completions", base_url=url, model_id=model, model_name=name,
            tokenizer=get_tokenizer(model), input_requests=requests, logprobs=None, request_rate=float("inf"),
            burstiness=1.0, disable_tqdm=not sys.stderr.isatty(), num_warmups=0, profile=False,
            selected_percentile_metrics=["ttft", "tpot", "itl", "e2el"], selected_percentiles=[99.0],
            ignore_eos=False, goodput_config_dict={}, max_concurrency=concurrency, lora_modules=None,
            extra_headers=None, extra_body=body,
        )
    )  # fmt: skip
