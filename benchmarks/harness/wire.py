"""A wire to a network namespace of this machine that delays what it carries, at a rate, and may lose some of it.

What `tc netem` does, for kernels without it: packets go from one TUN device to another through a process that holds
them back. TCP sees packets of 1,500 bytes; the kernel hands over and takes bursts of them in one piece, as it does with
virtual network cards, so that a process in Python keeps up with some Gbit/s. It needs root, and a core's time.

    python -m harness.wire DEVICE DEVICE DELAY_S BYTES_PER_S LOSS     makes both devices, and carries until it is killed
"""

import fcntl
import itertools
import os
import random
import select
import struct
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Self

from diptych.core.errors import BenchError

TUN = "/dev/net/tun"
SET_DEVICE, SET_OFFLOAD = 0x400454CA, 0x400454D0
IS_TUN, WITHOUT_PACKET_HEAD, WITH_BURST_HEAD = 0x0001, 0x1000, 0x4000
BURSTS = 0x01 | 0x02 | 0x04
"""Checksums may be missing, TCP over IPv4 and IPv6 may come in bursts: their head says so at the other end too."""
MAX_BURST_BYTES = 2**17
MAX_HELD_BYTES = 32 * 2**20
"""In each direction; more is lost, as in a switch whose queue is full."""
MAX_BURSTS_A_TURN = 32
TIMEOUT_S = 10.0
OWN_SYSFS = ["unshare", "--mount", "sh", "-c", 'mount -t sysfs sysfs /sys && exec "$@"', "sh"]
"""UCX looks for a network's devices there."""
_numbers = itertools.count()


class Wire:
    """A namespace, and the wire to it. A context manager; its end removes both."""

    def __init__(self, delay_s: float, bytes_per_s: float, loss: float = 0.0) -> None:
        """`delay_s`: one way. `loss`: the share of bursts that do not arrive.

        Raises: BenchError if namespaces or TUN devices are not to be had.
        """
        number = next(_numbers)
        devices = [f"dpw{os.getpid()}{end}{number}" for end in "ab"]
        self._device = devices[0]
        subnet = f"10.{200 + number % 50}.{os.getpid() % 250}"
        self.near, self.far = f"{subnet}.1", f"{subnet}.2"
        """This machine's address on the wire, and that of the namespace."""
        self._running: list[subprocess.Popen[str]] = []
        try:
            pid = self._open_namespace()
            self.prefix = ["nsenter", "-t", pid, "--net", "--", *OWN_SYSFS]
            """In front of commands that are to run there."""
            self._carry(devices, delay_s, bytes_per_s, loss)
            _run("ip", "link", "set", devices[1], "netns", pid)
            for device, address, prefix in ((devices[0], self.near, []), (devices[1], self.far, self.prefix)):
                _run(*prefix, "ip", "address", "add", f"{address}/24", "dev", device)
                _run(*prefix, "ip", "link", "set", device, "up")
            _run(*self.prefix, "ip", "link", "set", "lo", "up")
        except BaseException:
            self.close()
            raise

    def _open_namespace(self) -> str:
        """Return the process id of one that lives in the namespace."""
        holder = self._start(["unshare", "--net", "--fork", "--kill-child", "sleep", "infinity"])
        children = Path(f"/proc/{holder.pid}/task/{holder.pid}/children")
        give_up_s = time.monotonic() + TIMEOUT_S
        while time.monotonic() < give_up_s and holder.poll() is None:
            inside = children.read_text().split()
            if inside and Path(f"/proc/{inside[0]}/comm").read_text().strip() == "sleep":
                return inside[0]
            time.sleep(0.01)
        raise BenchError("no network namespace is to be had; it takes root")

    def _carry(self, devices: list[str], delay_s: float, bytes_per_s: float, loss: float) -> None:
        carrier = self._start(
            [sys.executable, "-m", "harness.wire", *devices, str(delay_s), str(bytes_per_s), str(loss)]
        )
        assert carrier.stdout is not None
        if carrier.stdout.readline().strip() != "ready":
            raise BenchError(f"no wire can be made; it takes root and {TUN}")

    def _start(self, command: list[str]) -> subprocess.Popen[str]:
        here = Path(__file__).parent.parent
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, cwd=here)
        self._running.append(process)
        return process

    def cut(self) -> None:
        """Let nothing through in either direction, and tell nobody."""
        _run("ip", "link", "set", self._device, "down")

    def heal(self) -> None:
        """Let everything through again."""
        _run("ip", "link", "set", self._device, "up")

    def close(self) -> None:
        """Remove the wire and the namespace."""
        for process in reversed(self._running):
            process.kill()  # what ends unshare otherwise is the end of its child only
            process.wait(TIMEOUT_S)
            assert process.stdout is not None
            process.stdout.close()
        self._running.clear()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=TIMEOUT_S)
    if done.returncode:
        raise BenchError(f"{' '.join(command)}: {done.stderr.strip()}")


class Direction:
    """One way of the wire: what comes in at one device goes out at the other, later."""

    def __init__(  # noqa: PLR0913, PLR0917
        self, source: int, target: int, delay_s: float, bytes_per_s: float, loss: float, chance: random.Random
    ) -> None:
        """`source` and `target`: descriptors of TUN devices that do not block."""
        self._source = source
        self._target = target
        self._delay_s = delay_s
        self._bytes_per_s = bytes_per_s
        self._loss = loss
        self._chance = chance
        self._held: deque[tuple[float, bytes]] = deque()
        self._num_held_bytes = 0
        self._free_s = 0.0

    def take(self, now_s: float) -> None:
        """Take in what has come."""
        for _ in range(MAX_BURSTS_A_TURN):
            try:
                burst = os.read(self._source, MAX_BURST_BYTES)
            except BlockingIOError:
                return
            is_lost = self._loss > 0 and self._chance.random() < self._loss
            if is_lost or self._num_held_bytes + len(burst) > MAX_HELD_BYTES:
                continue
            self._free_s = max(self._free_s, now_s) + len(burst) / self._bytes_per_s
            self._held.append((self._free_s + self._delay_s, burst))
            self._num_held_bytes += len(burst)

    def give(self, now_s: float) -> None:
        """Hand on what is due."""
        while self._held and self._held[0][0] <= now_s:
            _, burst = self._held.popleft()
            self._num_held_bytes -= len(burst)
            try:
                os.write(self._target, burst)
            except OSError:  # the device is not up yet: nobody is there
                continue

    @property
    def next_s(self) -> float:
        """When something is due; infinity: nothing is held."""
        return self._held[0][0] if self._held else float("inf")


def _open_device(name: str) -> int:
    descriptor = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
    flags = IS_TUN | WITHOUT_PACKET_HEAD | WITH_BURST_HEAD
    fcntl.ioctl(descriptor, SET_DEVICE, struct.pack("16sH22x", name.encode(), flags))
    fcntl.ioctl(descriptor, SET_OFFLOAD, BURSTS)
    return descriptor


def main() -> None:
    """Carry until this process is ended."""
    here, there = (_open_device(name) for name in sys.argv[1:3])
    delay_s, bytes_per_s, loss = map(float, sys.argv[3:6])
    chance = random.Random(0)
    there_from_here = Direction(here, there, delay_s, bytes_per_s, loss, chance)
    here_from_there = Direction(there, here, delay_s, bytes_per_s, loss, chance)
    print("ready", flush=True)
    while True:
        now_s = time.monotonic()
        wait_s = min(there_from_here.next_s, here_from_there.next_s) - now_s
        select.select([here, there], [], [], max(wait_s, 0.0) if wait_s < TIMEOUT_S else TIMEOUT_S)
        now_s = time.monotonic()
        for direction in (there_from_here, here_from_there):
            direction.take(now_s)
            direction.give(now_s)


if __name__ == "__main__":
    main()
