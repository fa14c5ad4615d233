"""How fast does KV move between two processes, by each transport, beside a plain socket and a copy within memory?

Blocks as large as those of the default model, scattered on both sides as they are in a busy cache; a push is over when
the receiver has said that all of it has landed. A plain socket (one run of bytes, sendall, recv_into, a byte back) and
copies of the same blocks within one process are measured in turn with them. What a push costs besides its bytes is told
by pushes of one block of 4 KiB. Both processes are on this machine, so all goes over the loopback device, or whatever
short cut the library takes. `--model` and `--engine` have no effect.
"""

import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diptych.bench.statistics import estimate_median
from diptych.core.errors import BenchError
from diptych.core.ids import BlockId
from diptych.transfer.frames import MAX_PUSH_BLOCKS
from diptych.transfer.memory import BlockPair
from harness.options import Options, setting
from harness.program import Outcome, ProgressBar, run_program
from harness.result import Finding
from harness.transfer_machine import EPOCH, HOST, TransferMachine

BLOCK_BYTES = 737_280
"""Of SmolLM2-135M with bf16 KV."""
SMALL_BLOCK_BYTES = 4_096
MEBIBYTE = 2**20
TIMEOUT_S = 60.0


@dataclass(frozen=True, kw_only=True)
class TransferOptions(Options):
    """Flags of this benchmark."""

    transports: tuple[str, ...] = setting(
        ("tcp", "mooncake", "nixl"), "Which to measure; those that are not there: no."
    )
    sizes_mib: tuple[int, ...] = setting((1, 4, 16, 64, 256), "How much a request moves.")
    num_small: int = setting(200, "Pushes of one small block.")


class Sender:
    """A machine that pushes to another process, and waits until it has landed."""

    def __init__(self, num_blocks: int, block_bytes: int, transport: str) -> None:
        self._changed = threading.Event()
        self.machine = TransferMachine("sender", num_blocks, block_bytes, transport, self._changed.set)
        program = [sys.executable, "-m", "harness.transfer_machine", str(num_blocks), str(block_bytes), transport]
        self._peer = subprocess.Popen(
            program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent
        )
        assert self._peer.stdout is not None
        endpoint, port, theirs = self._peer.stdout.readline().split()
        if {theirs, self.machine.transport} != {transport}:
            self.close()
            raise BenchError(f"{transport} is not there")
        self._link = self.machine.exchange.link(endpoint)
        self._plain = socket.create_connection((HOST, int(port)))
        self._plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self) -> None:
        """End both."""
        self.machine.exchange.close()
        assert self._peer.stdin is not None
        self._peer.stdin.close()
        self._peer.wait(TIMEOUT_S)

    def push_s(self, pairs: Sequence[BlockPair]) -> float:
        """Push blocks; return how long it took until all had landed."""
        begin_s = time.perf_counter()
        orders = [pairs[begin : begin + MAX_PUSH_BLOCKS] for begin in range(0, len(pairs), MAX_PUSH_BLOCKS)]
        transfers = [self._link.push(EPOCH, order) for order in orders]
        while not transfers[-1].is_over:
            if not self._changed.wait(TIMEOUT_S):
                raise BenchError("a push does not end")
            self._changed.clear()
        if any(transfer.error for transfer in transfers):
            raise BenchError(f"a push has failed: {transfers[-1].error}")
        return time.perf_counter() - begin_s

    def plain_s(self, num_bytes: int) -> float:
        """Send one run of bytes over a plain socket; return how long it took until the other had it."""
        begin_s = time.perf_counter()
        self._plain.sendall(num_bytes.to_bytes(8, "big"))
        self._plain.sendall(self.machine.content[:num_bytes].data)
        self._plain.recv(1)
        return time.perf_counter() - begin_s


def copy_s(machine: TransferMachine, pairs: Sequence[BlockPair]) -> float:
    """Copy blocks within one memory; return how long that took."""
    begin_s = time.perf_counter()
    for here, there in pairs:
        (source,), (target,) = machine.memory.parts([here]), machine.memory.parts([there])
        np.copyto(np.frombuffer(target, np.uint8), np.frombuffer(source, np.uint8))
    return time.perf_counter() - begin_s


def measure(options: TransferOptions, progress: ProgressBar) -> Outcome:
    """Alternate every transport with what it is compared with."""
    progress.expect(len(options.transports))
    findings: list[Finding] = []
    samples: dict[str, Any] = {}
    for transport in options.transports:
        with progress.part(transport):
            try:
                measured = _measure_one(transport, options)
            except BenchError as error:
                samples[transport] = {"why_not": str(error)}
                continue
        samples[transport] = measured
        findings += _findings(transport, measured, options.seed)
    return Outcome(findings, samples)


def _measure_one(transport: str, options: TransferOptions) -> dict[str, Any]:
    draw = random.Random(options.seed)
    most_blocks = max(options.sizes_mib) * MEBIBYTE // BLOCK_BYTES + 1
    measured: dict[str, Any] = {}
    with _sender(2 * most_blocks, BLOCK_BYTES, transport) as sender:
        for size_mib in options.sizes_mib:
            num_blocks = max(round(size_mib * MEBIBYTE / BLOCK_BYTES), 1)
            part = measured[str(size_mib)] = {
                "num_bytes": num_blocks * BLOCK_BYTES,
                "push": [],
                "plain": [],
                "copy": [],
            }
            for index in range(options.pairs + 1):
                pairs = _scattered(num_blocks, 2 * most_blocks, draw)
                took = (sender.push_s(pairs), sender.plain_s(num_blocks * BLOCK_BYTES), copy_s(sender.machine, pairs))
                if index:  # the first connects, and touches what has not been
                    for name, duration_s in zip(("push", "plain", "copy"), took, strict=True):
                        part[name].append(duration_s)
    with _sender(64, SMALL_BLOCK_BYTES, transport) as sender:
        small = [sender.push_s(_scattered(1, 64, draw)) for _ in range(options.num_small + 1)][1:]
        plain = [sender.plain_s(SMALL_BLOCK_BYTES) for _ in range(options.num_small + 1)][1:]
    measured["small"] = {"push": small, "plain": plain}
    return measured


@contextmanager
def _sender(num_blocks: int, block_bytes: int, transport: str) -> Iterator[Sender]:
    sender = Sender(num_blocks, block_bytes, transport)
    try:
        yield sender
    finally:
        sender.close()


def _scattered(num_blocks: int, num_there_are: int, draw: random.Random) -> list[BlockPair]:
    """Return pairs, of which no block is both source and target: they are also copied within one memory."""
    blocks = [BlockId(number) for number in draw.sample(range(num_there_are), 2 * num_blocks)]
    return [BlockPair(here, there) for here, there in zip(blocks[::2], blocks[1::2], strict=True)]


def _findings(transport: str, measured: dict[str, Any], seed: int) -> list[Finding]:
    findings: list[Finding] = []
    for size, part in measured.items():
        if size == "small":
            continue
        speeds = [part["num_bytes"] / duration_s / 1e9 for duration_s in part["push"]]
        what = f"{transport}, {size} MiB"
        findings.append(Finding(what=f"{what}, speed", measured=estimate_median(speeds, seed), unit="GB/s"))
        for other, words in (("plain", "a plain socket's"), ("copy", "a copy's")):
            shares = [theirs / ours for theirs, ours in zip(part[other], part["push"], strict=True)]
            share = estimate_median(shares, seed)
            findings.append(Finding(what=f"{what}, share of {words} speed", measured=share, unit=""))
    for name in ("push", "plain"):
        micros = estimate_median([duration_s * 1e6 for duration_s in measured["small"][name]], seed)
        word = "a push" if name == "push" else "a plain socket's message"
        findings.append(Finding(what=f"{transport}, {word} of 4 KiB", measured=micros, unit="µs"))
    return findings


if __name__ == "__main__":
    run_program("transfer", TransferOptions, __doc__, measure)
