"""Load for a `vllm serve` with std: mixed requests at rising concurrency, clients that leave in mid-stream.

    python scripts/bench/soak.py --url http://127.0.0.1:8000 --expect http://127.0.0.1:8001   # the second without std

Prints a JSON summary; its `failures` is empty and the exit status 0 where no request failed that plain vLLM would
answer, greedy answers were those of plain vLLM, and the server was left idle, empty and no larger than before.
"""

import asyncio
import json
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import httpx
import psutil
import typer
from prometheus_client.parser import text_string_to_metric_families

CONCURRENCY = {1: 0.05, 4: 0.15, 16: 0.35, 64: 0.45}  # clients at a time: share of the requests
POOL, LONGEST, LEAVES = 40, 300, 0.2
# Memory is compared from the end of the first third on, when every kind of request has been seen. Later the number of
# clients still rises, and with it, once, connections and the allocator's arenas for requests in flight.
SLACK_MIB = 64
COUNTED = ("spec_decode_num_draft_tokens", "spec_decode_num_accepted_tokens", "num_preemptions")


def pool(seed: int = 0) -> list[dict]:
    """Distinct greedy requests; every user of the same seed gets the same."""
    draw, bodies = random.Random(seed), []
    for index in range(POOL):
        length = draw.choice((1, 2, 17, 31, 32, 33, 64, 100, 200, LONGEST, draw.randint(1, LONGEST)))
        body = {"prompt": [draw.randint(5, 599) for _ in range(length)], "max_tokens": draw.randint(1, 16)}
        body |= {"temperature": 0, "ignore_eos": True}
        body |= ({}, {"stop_token_ids": draw.sample(range(5, 600), 60)}, {"logprobs": 2}, {"ignore_eos": False})[
            index % 4
        ]
        body |= ({}, {"presence_penalty": 0.7}, {}, {"repetition_penalty": 1.3}, {"frequency_penalty": 0.4})[index % 5]
        bodies.append(body)
    return bodies


@dataclass
class Request:
    """kind: greedy (of the pool, `index`), sampled, or invalid; leaves: chunks after which the client is gone."""

    kind: str
    body: dict
    index: int = -1
    leaves: int | None = None


@dataclass
class Phase:
    concurrency: int
    requests: int = 0
    disconnects: int = 0
    refused: int = 0
    errors: int = 0
    tokens: int = 0
    seconds: float = 0.0
    drafted: int = 0
    accepted: int = 0
    preemptions: int = 0
    rss_mib: dict[str, int] = field(default_factory=dict)


def request(draw: random.Random, bodies: list[dict], longest: int) -> Request:
    """The next request of the mix; longest: the server's max_model_len."""
    kind = draw.choices(("greedy", "sampled", "invalid"), (70, 25, 5))[0]
    index = draw.randrange(len(bodies))
    body = dict(bodies[index])
    if kind == "invalid":
        wrong = {"temperature": -1}, {"prompt": [7] * (longest + 1)}, {"vllm_xargs": {"std": "no"}}, {"max_tokens": -3}
        return Request(kind, body | draw.choice(wrong))
    if kind == "sampled":
        body |= {"temperature": draw.choice((0.3, 1.0)), "seed": draw.randrange(100), "n": draw.choice((1, 1, 2))}
        body |= draw.choice(({}, {"top_p": 0.9}, {"top_k": 20}))
    if draw.random() < 0.2:
        body["vllm_xargs"] = {"std": 0}
    body["stream"] = draw.random() < 0.6
    leaves = draw.randint(0, 4) if body["stream"] and draw.random() < LEAVES else None
    return Request(kind, body, index, leaves)


class Soak:
    def __init__(self, client: httpx.AsyncClient, model: str, expected: list[list[int]]):
        self.client, self.model, self.expected, self.failures = client, model, expected, []
        self.has_std = True

    async def send(self, asked: Request, phase: Phase) -> None:
        phase.requests += 1
        try:
            await self._send(asked, phase)
        except (httpx.HTTPError, ValueError, KeyError) as error:
            self.fail(phase, asked, repr(error))

    async def _send(self, asked: Request, phase: Phase) -> None:
        body = asked.body | {"model": self.model, "return_token_ids": True}
        async with self.client.stream("POST", "/v1/completions", json=body) as reply:
            if reply.status_code != 200 or asked.kind == "invalid":
                text = (await reply.aread()).decode()[:300]
                phase.refused += asked.kind == "invalid"
                if reply.status_code != (400 if self.refuses(asked) else 200):
                    self.fail(phase, asked, f"{reply.status_code}: {text}")
                return
            tokens = await (self._streamed if body["stream"] else self._whole)(reply, asked)
        if tokens is None:
            phase.disconnects += 1
            return
        phase.tokens += sum(map(len, tokens))
        if len(tokens) != body.get("n", 1) or not all(0 < len(answer) <= body["max_tokens"] for answer in tokens):
            self.fail(phase, asked, f"answers of {list(map(len, tokens))} tokens")
        elif asked.kind == "greedy" and tokens[0] != self.expected[asked.index]:
            self.fail(phase, asked, f"answer {tokens[0]}, and plain vLLM says {self.expected[asked.index]}")

    async def _whole(self, reply: httpx.Response, asked: Request) -> list[list[int]]:
        return [choice["token_ids"] for choice in json.loads(await reply.aread())["choices"]]

    async def _streamed(self, reply: httpx.Response, asked: Request) -> list[list[int]] | None:
        """Token ids of each answer; None where the client left."""
        answers: dict[int, list[int]] = {}
        chunks = 0
        async for line in reply.aiter_lines():
            if asked.leaves is not None and chunks >= asked.leaves:
                return None
            if not line.startswith("data: {"):
                continue
            chunks += 1
            for choice in json.loads(line.removeprefix("data: "))["choices"]:
                answers.setdefault(choice["index"], []).extend(choice["token_ids"] or ())
        return [answers[index] for index in sorted(answers)]

    def refuses(self, asked: Request) -> bool:
        """What plain vLLM refuses; what a client says wrongly of std is nothing to a server without it."""
        return asked.kind == "invalid" and (self.has_std or "vllm_xargs" not in asked.body)

    def fail(self, phase: Phase, asked: Request, what: str) -> None:
        phase.errors += 1
        said = {name: value for name, value in asked.body.items() if name != "prompt"}
        self.failures.append(f"{asked.kind} {asked.index} {said}: {what}")

    async def run(self, phase: Phase, requests: list[Request]) -> None:
        """Send all of them, `phase.concurrency` at a time."""
        waiting = iter(requests)

        async def worker() -> None:
            for asked in waiting:
                await self.send(asked, phase)

        await asyncio.gather(*(worker() for _ in range(phase.concurrency)))

    async def counters(self) -> dict[str, float]:
        """vLLM's own metrics, by name without prefix, added up over labels."""
        total: dict[str, float] = {}
        for family in text_string_to_metric_families((await self.client.get("/metrics")).text):
            for sample in family.samples:
                name = sample.name.removeprefix("vllm:")
                total[name] = total.get(name, 0) + sample.value
        return total


def server_process(url: str) -> psutil.Process | None:
    """What listens there, where that is this machine and may be asked."""
    where = urlsplit(url)
    if where.hostname not in ("127.0.0.1", "localhost"):
        return None
    try:
        found = psutil.net_connections("tcp")
    except psutil.AccessDenied:
        return None
    pids = {c.pid for c in found if c.status == psutil.CONN_LISTEN and c.laddr.port == where.port and c.pid}
    return psutil.Process(min(pids)) if pids else None


def rss(server: psutil.Process | None) -> dict[str, int]:
    """MiB of the API server, the engine core and the workers, which vLLM names in their titles."""
    sizes: dict[str, int] = {}
    for process in [server, *server.children(recursive=True)] if server else []:
        title = process.name()
        name = title.removeprefix("VLLM::").split("_")[0].lower() if title.startswith("VLLM::") else "server"
        sizes[name] = sizes.get(name, 0) + process.memory_info().rss // 2**20
    return sizes


async def left_behind(soak: Soak) -> list[str]:
    """What is still there when all clients are gone, half a minute later at the latest."""
    names, values = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"), {}
    for _ in range(60):
        values = await soak.counters()
        if not any(values[name] for name in names):
            return []
        await asyncio.sleep(0.5)
    return [f"left behind: {name} {values[name]}" for name in names if values[name]]


async def expected_from(source: str, bodies: list[dict]) -> list[list[int]]:
    """What plain vLLM answers: a JSON file of token ids, or asked of a server."""
    if not source.startswith("http"):
        return json.loads(Path(source).read_text())
    async with httpx.AsyncClient(base_url=source, timeout=300) as client:
        model = (await client.get("/v1/models")).json()["data"][0]["id"]
        asked = [body | {"model": model, "return_token_ids": True} for body in bodies]
        replies = [(await client.post("/v1/completions", json=body)).raise_for_status().json() for body in asked]
        return [reply["choices"][0]["token_ids"] for reply in replies]


async def soak(url: str, requests: int, seed: int, expect: str, slack: int) -> dict:
    bodies, draw, server, phases = pool(), random.Random(seed), server_process(url), []
    expected, first = await expected_from(expect, bodies), {}
    limits = httpx.Limits(max_connections=max(CONCURRENCY))
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:
        model = (await client.get("/v1/models")).json()["data"][0]
        run = Soak(client, model["id"], expected)
        run.has_std = any(name.startswith("std_") for name in await run.counters())
        for concurrency, share in CONCURRENCY.items():
            phase, before, began = Phase(concurrency), await run.counters(), time.perf_counter()
            asked = [request(draw, bodies, model["max_model_len"]) for _ in range(round(requests * share))]
            third = min(len(asked), round(requests / 3) - sum(past.requests for past in phases))
            if not first and third < len(asked):
                await run.run(phase, asked[: max(0, third)])
                first, asked = rss(server), asked[max(0, third) :]
            await run.run(phase, asked)
            phase.seconds, after = round(time.perf_counter() - began, 1), await run.counters()
            phase.drafted, phase.accepted, phase.preemptions = (
                int(after.get(f"{name}_total", 0) - before.get(f"{name}_total", 0)) for name in COUNTED
            )
            phase.rss_mib = rss(server)
            phases.append(phase)
            print(json.dumps(vars(phase)), file=sys.stderr)
        failures = run.failures + await left_behind(run)
    last = rss(server)
    grown = {name: last.get(name, 0) - size for name, size in first.items()}
    failures += [f"{name} grew by {size} MiB, slack {slack}" for name, size in grown.items() if size > slack]
    return {"phases": [vars(phase) for phase in phases], "grown_mib": grown, "failures": failures}


def main(
    expect: Annotated[str, typer.Option(help="a plain server's URL, or a JSON file of what it answers to the pool")],
    url: Annotated[str, typer.Option(help="of the server with std")] = "http://127.0.0.1:8000",
    requests: Annotated[int, typer.Option(min=len(CONCURRENCY), help="how many in all")] = 2000,
    seed: Annotated[int, typer.Option(help="of the mix")] = 0,
    slack: Annotated[int, typer.Option(help="MiB that a process may grow by after the first third")] = SLACK_MIB,
) -> None:
    summary = asyncio.run(soak(url, requests, seed, expect, slack))
    summary["failures"], total = summary["failures"][:20], len(summary["failures"])
    print(json.dumps(summary | {"num_failures": total}, indent=1))
    raise typer.Exit(bool(total))


if __name__ == "__main__":
    typer.run(main)
