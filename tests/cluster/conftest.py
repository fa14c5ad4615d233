"""A router's machine and others that join it, as processes on hosts with networks and clocks of their own."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.hosts import Host
from tests.live_process import Command, StartCommand
from tests.live_server import LiveServer, Prompt, Stream, eventually
from tests.ports import free_port

from diptych.wire.cluster_keys import create_keys

NODE_TIMEOUT_S = 1.5
MOST_ROUTERS = 2
"""Of a cluster; each listens at a port of its own, one after the other."""
MODELED = ("--engine", "modeled", "--kv-bytes", "2MB")


def one_core(number: int) -> tuple[str, str]:
    """Return the arguments that put a machine's only worker on one core, another for each number if there are any.

    Answers are compared with those of workers on one core each. On several, a step of fewer sequences than threads
    rounds differently (docs/adr/0011).
    """
    cores = sorted(os.sched_getaffinity(0))
    return "--cores", str(cores[number % len(cores)])


class Cluster:
    """A router's machine, and those that join it."""

    def __init__(self, start: StartCommand, folder: Path, *serve: str) -> None:
        self._start = start
        self.port = free_port(MOST_ROUTERS)
        self.keys = folder
        create_keys(folder, ["node", "other"])
        self.head: Command = start(
            *("serve", "--port", "0", "--cluster-listen", f"0.0.0.0:{self.port}", "--cluster-keys", str(folder)),
            *("--node-timeout-s", str(NODE_TIMEOUT_S), *serve),
        )
        self.machines: dict[str, Command] = {}

    def join(self, host: Host, *arguments: str, key: str = "node") -> Command:
        """Start `diptych worker` on a host."""
        command = self._start(
            *("worker", "--join", host.router_at(self.port), "--keys", str(self.keys / key), "--node", host.name),
            *("--kv-bytes", "2MB", *arguments),
            prefix=host.prefix,
        )
        self.machines[host.name] = command
        return command

    def end_in_order(self) -> None:
        """End all machines, then the router; fail unless nothing is held and nothing is left on any of them."""
        self.server.wait_until_idle()
        for machine in self.machines.values():
            machine.close()
            machine.wait_until_gone()
            assert "Traceback" not in machine.stderr, machine.stderr
        eventually(lambda: not self.server.status()["nodes"], "all machines have left")
        has_own_workers = bool(self.server.status()["workers"])
        assert self.server.post("Hello").status_code == (200 if has_own_workers else 503)
        self.head.signal(signal.SIGTERM)
        assert self.head.wait_for_exit() == 0, self.head.stderr
        self.head.wait_until_gone()
        assert "Traceback" not in self.head.stderr, self.head.stderr

    @property
    def server(self) -> LiveServer:
        return self.head.wait_for_server()


StartCluster = Callable[..., Cluster]


@pytest.fixture
def start_cluster(start_command: StartCommand, tmp_path: Path) -> StartCluster:
    """Start a router's machine with these arguments of `diptych serve`."""
    return lambda *serve: Cluster(start_command, tmp_path / "keys", *serve)


@pytest.fixture(scope="module")
def start_module_command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartCommand]:
    """The same as `start_command`, for commands that serve all tests of a module."""
    folder = tmp_path_factory.mktemp("commands")
    with ExitStack() as running:

        def start(*arguments: str, variables: dict[str, str] | None = None, prefix: Any = ()) -> Command:
            command = Command(folder, arguments, variables or {}, prefix)
            running.callback(command.close)
            return command

        yield start


def node_state(server: LiveServer, name: str) -> str | None:
    """Return a machine's state as the router sees it; None: it does not know it."""
    node = server.status()["nodes"].get(name)
    return None if node is None else str(node["state"])


def wait_until_serving(server: LiveServer, *names: str) -> None:
    """Wait until all workers of these machines take requests."""

    def is_serving(name: str) -> bool:
        status = server.status()
        node = status["nodes"].get(name)
        if node is None or node["state"] != "joined":
            return False
        return all(status["workers"][worker]["status"]["state"] == "ready" for worker in node["workers"])

    for name in names:
        eventually(lambda name=name: is_serving(name), f"{name} serving")  # type: ignore[misc]


def run_command(*arguments: str, prefix: Any = ()) -> subprocess.CompletedProcess[str]:
    """Run `diptych` to its end."""
    command = [*prefix, sys.executable, "-m", "diptych", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@contextmanager
def open_streams(server: LiveServer, prompts: Sequence[Prompt], num_events: int, **more: Any) -> Iterator[list[Stream]]:
    """Open a stream for each prompt and read so many of its events; leaving the block hangs up."""
    with ExitStack() as stack:
        yield [stack.enter_context(server.stream(prompt, **more)).read(num_events) for prompt in prompts]
