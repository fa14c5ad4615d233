"""Machines of their own, for tests: a network namespace and a monotonic clock each, with a cable that can be pulled.

Where namespaces are not permitted, a host is a loopback address (127.0.0.2, ...), its clock everybody's, and its cable
a forwarder that can stand still; the head of pytest's report says so.
"""

import contextlib
import functools
import os
import select
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from tests.live_server import eventually

FORWARDED_BYTES = 65536
UNSHARE = ("unshare", "--net", "--time", "--monotonic")


@functools.cache
def why_no_namespaces() -> str | None:
    """Return why hosts cannot have networks and clocks of their own here; None: they can."""
    missing = [name for name in ("ip", "nsenter", "unshare") if shutil.which(name) is None]
    if missing:
        return f"there is no {missing[0]}"
    enter = subprocess.run(
        [*UNSHARE, "1", "--fork", "ip", "link", "add", "type", "veth"],
        capture_output=True,
        text=True,
        check=False,
        timeout=10,
    )
    return enter.stderr.strip().splitlines()[-1] if enter.returncode else None


class Host(Protocol):
    """A machine that joins."""

    name: str
    clock_offset_s: float
    """By how much its clock is ahead of this one's."""
    prefix: list[str]
    """In front of commands that run there."""

    def router_at(self, port: int) -> str:
        """Return how a port of this machine is reached from there: `HOST:PORT`."""
        ...

    def cut(self) -> None:
        """Pull the cable: nothing gets through in either direction, and nobody is told."""
        ...

    def heal(self) -> None:
        """Put it back."""
        ...

    def close(self) -> None:
        """Remove it."""
        ...


class NamespaceHost:
    """A network namespace, joined to ours by a pair of virtual devices, and a time namespace."""

    def __init__(self, name: str, number: int, clock_offset_s: float) -> None:
        self.name = name
        self.clock_offset_s = clock_offset_s
        self._device = f"dpt{os.getpid()}n{number}"
        self._subnet = f"10.{64 + os.getpid() % 128}.{number}"
        offset = str(round(clock_offset_s))
        self._holder = subprocess.Popen(
            [*UNSHARE, offset, "--boottime", offset, "--fork", "--kill-child", "sleep", "infinity"],
            stderr=subprocess.DEVNULL,
        )
        children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children")
        eventually(lambda: bool(children.read_text().split()), "the namespace's first process")
        self._pid = children.read_text().split()[0]
        eventually(lambda: Path(f"/proc/{self._pid}/comm").read_text().strip() == "sleep", "the namespaces")
        self.prefix = ["nsenter", "-t", self._pid, "--net", "--time", "--"]
        inside = f"{self._device}i"
        _run("ip", "link", "add", self._device, "type", "veth", "peer", "name", inside, "netns", self._pid)
        _run("ip", "address", "add", f"{self._subnet}.1/24", "dev", self._device)
        _run("ip", "link", "set", self._device, "up")
        _run(*self.prefix, "ip", "address", "add", f"{self._subnet}.2/24", "dev", inside)
        _run(*self.prefix, "ip", "link", "set", inside, "up")

    def router_at(self, port: int) -> str:
        return f"{self._subnet}.1:{port}"

    def cut(self) -> None:
        _run("ip", "link", "set", self._device, "down")

    def heal(self) -> None:
        _run("ip", "link", "set", self._device, "up")

    def close(self) -> None:
        _run("ip", "link", "delete", self._device)
        os.kill(int(self._pid), signal.SIGKILL)
        self._holder.wait()


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=10)
    assert done.returncode == 0, f"{command}: {done.stderr}"


class LoopbackHost:
    """A loopback address, with a forwarder to the router's port in place of a cable."""

    clock_offset_s = 0.0

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.prefix: list[str] = []
        self._cable = Cable(f"127.0.0.{number + 2}")

    def router_at(self, port: int) -> str:
        return f"127.0.0.{self._cable.address.rpartition('.')[2]}:{self._cable.lay(port)}"

    def cut(self) -> None:
        self._cable.is_cut = True

    def heal(self) -> None:
        self._cable.is_cut = False

    def close(self) -> None:
        self._cable.close()


class Cable:
    """Forwards connections, or stands still without closing them."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.is_cut = False
        self._listener: socket.socket | None = None
        self._is_closing = False
        self._threads: list[threading.Thread] = []

    def lay(self, port: int) -> int:
        """Forward to a port of this machine from now on, the same for all calls; return where to connect."""
        if self._listener is None:
            self._listener = socket.create_server((self.address, 0))
            self._listener.settimeout(0.1)
            self._start(self._accept, port)
        listening: int = self._listener.getsockname()[1]
        return listening

    def _start(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self, port: int) -> None:
        assert self._listener is not None
        while not self._is_closing:
            with contextlib.suppress(TimeoutError):
                near, _ = self._listener.accept()
                self._start(self._forward, near, port)

    def _forward(self, near: socket.socket, port: int) -> None:
        while self.is_cut and not self._is_closing:
            time.sleep(0.02)
        with contextlib.suppress(OSError), near, socket.create_connection(("127.0.0.1", port)) as far:
            while not self._is_closing:
                if self.is_cut:
                    time.sleep(0.02)
                    continue
                ready, _, _ = select.select([near, far], [], [], 0.1)
                for one in ready:
                    data = one.recv(FORWARDED_BYTES)
                    if not data:
                        return
                    (far if one is near else near).sendall(data)

    def close(self) -> None:
        """Cut all connections and stop."""
        self._is_closing = True
        for thread in self._threads:
            thread.join()
        if self._listener is not None:
            self._listener.close()


@contextlib.contextmanager
def hosts(*names: str) -> Iterator[list[Host]]:
    """Set up machines, whose clocks are an hour ahead, seven minutes behind and so on where that can be had."""
    uptime_s = time.monotonic()
    offsets = [3600.0, -min(420.0, uptime_s // 2), 86400.0]
    with contextlib.ExitStack() as stack:
        made: list[Host] = []
        for number, name in enumerate(names):
            host: Host = (
                NamespaceHost(name, number, offsets[number % len(offsets)])
                if why_no_namespaces() is None
                else LoopbackHost(name, number)
            )
            stack.callback(host.close)
            made.append(host)
        yield made
