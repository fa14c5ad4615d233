"""Serves a mixed load for a long time while workers are killed, stopped and drained, and clients abort and hang up.

The engine is modeled, so the right answer to every prompt is known: a token that is lost, doubled or of somebody else's
prompt shows. At the end no block may be held, and memory and file descriptors must be where they were. Prints a table,
writes `soak.json` with all samples to --output, and fails if anything was lost, wrong or leaked.

    python benchmarks/soak.py --minutes 30
"""

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import msgspec

from diptych.core.errors import DiptychError
from diptych.engine.modeled_engine import FIRST_TOKEN_ID, expected_tokens
from diptych.frontend.text.tokenizer import Tokenizer
from diptych.hardware.host import host_facts
from diptych.models import resolve
from harness.cli_server import CliServer
from harness.process_memory import private_bytes, tree_of

VOCAB_SIZE = 49_152
SERVER = ("--engine", "modeled", "--kv-bytes", "8MB", "--prefill", "2", "--decode", "2", "--modeled-time-scale", "0.1")
PATIENCE_S = 120.0
SETTLE_S = 60.0
SAMPLE_INTERVAL_S = 2.0
CALM_SHARE = 0.2
"""Of the time at the start, in which memory may still grow: caches fill."""
MOST_GROWTH_SHARE = 0.1
"""Of the memory that the launcher and the frontend have after that time."""
MOST_NEW_DESCRIPTORS = 8
NUM_STORIES = 8
"""Prompts begin with one of so many texts, so that prefixes are shared."""


@dataclass
class Tally:
    """What has happened so far."""

    ends: Counter[str] = field(default_factory=Counter)
    chaos: Counter[str] = field(default_factory=Counter)
    migrations: dict[str, int] = field(default_factory=dict)
    """By request, of those that have changed their workers."""
    troubles: list[str] = field(default_factory=list)

    def trouble(self, kind: str, text: str) -> None:
        """Count a request that did not end as it should, and say how."""
        self.ends[kind] += 1
        self.troubles.append(f"{kind}: {text[:300]}")


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """The processes that are never restarted, at one moment."""

    at_s: float
    memory_bytes: int
    """Private memory of launcher and frontend."""
    num_descriptors: int


class Soak:
    """One server, its clients and its troublemaker."""

    def __init__(self, server: CliServer, options: argparse.Namespace, tokenizer: Tokenizer) -> None:
        self.tally = Tally()
        self.samples: list[Sample] = []
        self._server = server
        self._options = options
        self._tokenizer = tokenizer
        self._chance = random.Random(options.seed)
        self._stories = [self._tokens(600) for _ in range(NUM_STORIES)]
        self._begin_s = time.monotonic()
        self._end_s: float = self._begin_s + 60 * options.minutes
        limits = httpx.Limits(max_connections=options.clients + 8, max_keepalive_connections=0)
        self._http = httpx.AsyncClient(base_url=server.url, timeout=PATIENCE_S, limits=limits)

    async def run(self) -> int:
        """Load and trouble the server for the time that was asked for; return what it holds at the end, when idle."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._options.clients):
                tasks.create_task(self._be_client())
            tasks.create_task(self._make_trouble())
            tasks.create_task(self._watch())
        give_up_s = time.monotonic() + SETTLE_S
        while (num_held := await self._num_held()) > 0 and time.monotonic() < give_up_s:  # noqa: ASYNC110
            await asyncio.sleep(0.5)
        await self._http.aclose()
        return num_held

    @property
    def _is_over(self) -> bool:
        return time.monotonic() >= self._end_s

    def _tokens(self, number: int) -> list[int]:
        return [self._chance.randrange(FIRST_TOKEN_ID, VOCAB_SIZE) for _ in range(number)]

    # Clients

    async def _be_client(self) -> None:
        acts: list[Callable[[list[int], int], Awaitable[None]]] = [self._stream, self._ask, self._leave, self._hang_up]
        while not self._is_over:
            num_shared = self._chance.choice([0, 0, 100, 300, 600])
            prompt = self._chance.choice(self._stories)[:num_shared] + self._tokens(self._chance.randint(1, 120))
            act = self._chance.choices(acts, [5, 3, 1, 1])[0]
            await act(prompt, self._chance.randint(1, 150))
            await asyncio.sleep(self._chance.expovariate(4.0))

    def _body(self, prompt: list[int], max_tokens: int, **more: object) -> dict[str, Any]:
        body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
        return {**body, "model": self._server.model, **more}

    async def _ask(self, prompt: list[int], max_tokens: int) -> None:
        """Wait for a whole answer."""
        try:
            answer = await self._http.post("/v1/completions", json=self._body(prompt, max_tokens))
        except httpx.HTTPError as error:
            self.tally.trouble("lost", repr(error))
            return
        if answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
            self.tally.ends["refused"] += 1
        elif answer.status_code != httpx.codes.OK:
            self.tally.trouble("lost", answer.text)
        else:
            self._judge(answer.json()["choices"][0]["text"], prompt, max_tokens)

    async def _stream(self, prompt: list[int], max_tokens: int) -> None:
        """Read an answer as it is made."""
        text = ""
        try:
            body = self._body(prompt, max_tokens, stream=True)
            async with self._http.stream("POST", "/v1/completions", json=body) as response:
                if response.status_code == httpx.codes.TOO_MANY_REQUESTS:
                    self.tally.ends["refused"] += 1
                    return
                async for line in response.aiter_lines():
                    if not line.startswith("data: "):
                        continue
                    if line == "data: [DONE]":
                        self._judge(text, prompt, max_tokens)
                        return
                    event = json.loads(line.removeprefix("data: "))
                    if "error" in event:
                        self.tally.trouble("lost", line)
                        return
                    text += "".join(choice["text"] for choice in event["choices"])
            self.tally.trouble("lost", f"the stream ended without its end, status {response.status_code}")
        except httpx.HTTPError as error:
            self.tally.trouble("lost", repr(error))

    async def _leave(self, prompt: list[int], max_tokens: int) -> None:
        """Begin to read an answer and leave at some moment."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._chance.expovariate(3.0)):
                await self._stream(prompt, max_tokens)
                return
        self.tally.ends["left"] += 1

    async def _hang_up(self, prompt: list[int], max_tokens: int) -> None:
        """Send a request and close the connection at once, or after half of the request."""
        body = json.dumps(self._body(prompt, max_tokens)).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: soak\r\nContent-Length: {len(body)}\r\n"
        request = f"{head}Content-Type: application/json\r\n\r\n".encode() + body
        url = httpx.URL(self._server.url)
        _, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(request if self._chance.random() < 0.5 else request[: len(request) // 2])
        with suppress(OSError):
            await writer.drain()
            writer.close()
            await writer.wait_closed()
        self.tally.ends["hung up"] += 1

    def _judge(self, text: str, prompt: list[int], max_tokens: int) -> None:
        if text == self._tokenizer.decode(expected_tokens(prompt, max_tokens, VOCAB_SIZE)):
            self.tally.ends["finished"] += 1
        else:
            self.tally.trouble("wrong", f"{len(prompt)} tokens in, {max_tokens} out: {text!r}")

    # Trouble

    async def _make_trouble(self) -> None:
        low_s, high_s = self._options.trouble_s
        while not self._is_over:
            await asyncio.sleep(self._chance.uniform(low_s, high_s))
            workers = await self._living()
            if not workers or self._is_over:
                continue
            name = self._chance.choice(sorted(workers))
            kind = self._chance.choice(["kill -9", "kill -9", "SIGSTOP", "SIGTERM", "drain"])
            self.tally.chaos[kind] += 1
            if kind == "drain":
                order = {"timeout_s": 1.0, "will_return": True}
                await self._http.post(f"/diptych/workers/{name}/drain", json=order)
                continue
            number = {"kill -9": signal.SIGKILL, "SIGSTOP": signal.SIGSTOP, "SIGTERM": signal.SIGTERM}[kind]
            with suppress(ProcessLookupError):
                os.kill(workers[name], number)

    async def _living(self) -> dict[str, int]:
        workers = (await self._http.get("/diptych/status")).json()["workers"]
        return {name: info["status"]["pid"] for name, info in workers.items() if info["status"]["state"] == "ready"}

    # What is left

    async def _watch(self) -> None:
        while not self._is_over:
            await asyncio.sleep(SAMPLE_INTERVAL_S)
            pids = [pid for pid in tree_of(self._server.pid) if b"diptych.worker" not in _command_line(pid)]
            memory_bytes = sum(private_bytes(pid) for pid in pids)
            num_descriptors = sum(_num_descriptors(pid) for pid in pids)
            at_s = time.monotonic() - self._begin_s
            self.samples.append(Sample(at_s=at_s, memory_bytes=memory_bytes, num_descriptors=num_descriptors))
            for record in (await self._http.get("/diptych/requests")).json():
                if record["num_migrations"]:
                    self.tally.migrations[record["request_id"]] = record["num_migrations"]
            self._tell()

    def _tell(self) -> None:
        counts = ", ".join(f"{number} {end}" for end, number in sorted(self.tally.ends.items()))
        troubles = sum(self.tally.chaos.values())
        print(f"\r{self.samples[-1].at_s:5.0f} s: {counts}; {troubles} troubles ", end="", file=sys.stderr, flush=True)

    async def _num_held(self) -> int:
        """Return how many requests and blocks are held, and how many workers are not up."""
        status = (await self._http.get("/diptych/status")).json()
        num_held: int = status["num_requests"]
        for info in status["workers"].values():
            worker = info["status"]
            num_held += worker["num_blocks"] - worker["num_free_blocks"] - worker["num_cached_blocks"]
            num_held += worker["state"] != "ready"
        return num_held


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b"diptych.worker"  # it has just ended, so it was one


def _num_descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def judge(soak: Soak, num_held: int) -> dict[str, bool]:
    """Return what had to be true, and whether it was."""
    calm = soak.samples[int(len(soak.samples) * CALM_SHARE) :]
    first, last = calm[0], calm[-1]
    return {
        "nothing was lost": soak.tally.ends["lost"] == 0,
        "nothing was wrong": soak.tally.ends["wrong"] == 0,
        "nothing is held": num_held == 0,
        "memory is flat": last.memory_bytes <= first.memory_bytes * (1 + MOST_GROWTH_SHARE),
        "file descriptors are flat": last.num_descriptors <= first.num_descriptors + MOST_NEW_DESCRIPTORS,
        "something was served": soak.tally.ends["finished"] > 0,
        "something was disturbed": sum(soak.tally.chaos.values()) > 0 and bool(soak.tally.migrations),
    }


def report(soak: Soak, num_held: int, options: argparse.Namespace) -> bool:
    """Print the outcome, write it down; tell whether all was well."""
    tally, verdicts = soak.tally, judge(soak, num_held)
    num_offered = tally.ends.total()
    print(f"\n{num_offered} requests offered in {options.minutes:g} minutes:")
    for end, number in tally.ends.most_common():
        print(f"  {number:7} {end}")
    num_migrations = sum(tally.migrations.values())
    print(f"  {len(tally.migrations):7} of them went on with another worker, {num_migrations} times in all")
    print("troubles: " + ", ".join(f"{number} {kind}" for kind, number in tally.chaos.most_common()))
    calm = soak.samples[int(len(soak.samples) * CALM_SHARE) :]
    print(
        f"launcher and frontend: {calm[0].memory_bytes / 1e6:.1f} MB, then {calm[-1].memory_bytes / 1e6:.1f} MB; ",
        end="",
    )
    print(f"{calm[0].num_descriptors} file descriptors, then {calm[-1].num_descriptors}")
    for text in tally.troubles[:20]:
        print(f"  {text}")
    for claim, is_true in verdicts.items():
        print(f"{'yes' if is_true else 'NO':>4}  {claim}")
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        content = {
            "seed": options.seed,
            "minutes": options.minutes,
            "server": SERVER,
            "host": host_facts(),
            "ends": tally.ends,
            "troubles": tally.chaos,
            "migrations": sum(tally.migrations.values()),
            "samples": soak.samples,
            "verdicts": verdicts,
        }
        (options.output / "soak.json").write_bytes(msgspec.json.format(msgspec.json.encode(content)))
    return all(verdicts.values())


async def _soak(server: CliServer, options: argparse.Namespace, tokenizer: Tokenizer) -> bool:
    soak = Soak(server, options, tokenizer)
    num_held = await soak.run()
    return report(soak, num_held, options)


def main() -> int:
    """Soak; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="how long [30]")
    parser.add_argument("--clients", type=int, default=12, help="requests at a time [12]")
    parser.add_argument(
        "--trouble-s", type=float, nargs=2, default=(8.0, 20.0), metavar=("LEAST", "MOST"), help="between two [8 20]"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all chance [0]")
    parser.add_argument("--output", type=Path, help="folder for soak.json")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is ended then too
    tokenizer = Tokenizer(resolve("smollm2-135m-instruct").path)
    try:
        server = CliServer(SERVER)
        try:
            return 0 if asyncio.run(_soak(server, options, tokenizer)) else 1
        finally:
            server.close()
    except DiptychError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
