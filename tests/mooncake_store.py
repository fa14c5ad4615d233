"""A real Mooncake Store for tests: its master, and machines that give it memory, as processes on this machine."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from tests.live_server import PATIENCE_S, eventually
from tests.ports import free_port

CLIENT_TTL_S = 2
"""How long the master believes in a machine of which it hears nothing."""
HOST = "127.0.0.1"
COUNT_REPLICAS = """
import os, sys, time
from mooncake.store import MooncakeDistributedStore
master, number, *keys = sys.argv[1:]
store = MooncakeDistributedStore()
assert store.setup("127.0.0.1", "P2PHANDSHAKE", 0, 2**20, "tcp", "", master) == 0
while any(len(store.get_replica_desc(key)) < int(number) for key in keys):
    time.sleep(0.1)
os._exit(0)
"""


def _program(name: str) -> str:
    package = find_spec("mooncake")
    assert package is not None and package.origin is not None
    return str(Path(package.origin).with_name(name))


class Program:
    """One of Mooncake's programs."""

    def __init__(self, name: str, host: str, *arguments: str) -> None:
        environment = os.environ | {"MC_LOG_LEVEL": "ERROR", "MC_TCP_BIND_ADDRESS": host}
        self.process = subprocess.Popen(
            [_program(name), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
        )

    def pause(self) -> None:
        """Let it stand still, connections and all."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it as a machine ends that loses its power; once more does nothing."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait(PATIENCE_S)


class MooncakeStore:
    """A master, and who gives it memory. Everything may be killed and started again."""

    def __init__(self, host: str = HOST, *, has_master: bool = True, master_flags: Sequence[str] = ()) -> None:
        """`host`: an address of this machine that all who use the store reach."""
        self.host, self.port = host, free_port()
        self._flags = master_flags
        self.master: Program | None = None
        self.machines: list[Program] = []
        if has_master:
            self.start_master()

    @property
    def address(self) -> str:
        """HOST:PORT of the master."""
        return f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """As `--kv-store` has it."""
        return f"mooncake://{self.address}"

    def start_master(self) -> None:
        """Start one, and wait until it listens. It remembers nothing of one before it."""
        self.master = Program(
            "mooncake_master",
            self.host,
            f"--rpc_port={self.port}",
            f"--rpc_address={self.host}",
            f"--metrics_port={free_port()}",
            f"--metrics_host={self.host}",
            "--enable_metric_reporting=false",
            f"--client_ttl={CLIENT_TTL_S}",
            "--default_kv_lease_ttl=500",
            *self._flags,
        )
        eventually(self._is_listening, "the master listens")

    def _is_listening(self) -> bool:
        try:
            socket.create_connection((self.host, self.port), 1).close()
        except OSError:
            return False
        return True

    def add_machine(self, memory: str = "64MB") -> Program:
        """Start one that gives the store memory; that it has is seen by what can be stored."""
        machine = Program(
            "mooncake_client",
            self.host,
            f"--host={self.host}",
            f"--port={free_port()}",
            "--metadata_server=P2PHANDSHAKE",
            f"--master_server_address={self.address}",
            f"--global_segment_size={memory}",
        )
        self.machines.append(machine)
        return machine

    def wait_for_replicas(self, keys: Sequence[str], num_replicas: int) -> None:
        """Fail unless each of these blocks is soon on so many machines."""
        command = [sys.executable, "-c", COUNT_REPLICAS, self.address, str(num_replicas), *keys]
        result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        assert result.returncode == 0, result.stderr

    def close(self) -> None:
        """End everything."""
        for program in (*self.machines, *([self.master] if self.master is not None else [])):
            program.resume()
            program.kill()


@contextlib.contextmanager
def mooncake_store(
    num_machines: int = 1,
    host: str = HOST,
    *,
    memory: str = "64MB",
    has_master: bool = True,
    master_flags: Sequence[str] = (),
) -> Iterator[MooncakeStore]:
    """Run a store for as long as the block lasts."""
    with contextlib.closing(MooncakeStore(host, has_master=has_master, master_flags=master_flags)) as store:
        for _ in range(num_machines):
            store.add_machine(memory)
        yield store
