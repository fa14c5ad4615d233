"""A server whose prompts are read on another machine: a router with a decode worker, and a machine that joins it.

Both are on this one, each with a core and memory of its own, and share nothing but what goes over the loopback device,
or over a wire to a network namespace.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

import diptych
from diptych.core.config import ServeConfig
from diptych.core.errors import BenchError
from diptych.wire.cluster_keys import create_keys
from harness.wire import Wire

JOIN_TIMEOUT_S = 120.0
READER = "reader"
POLL_S = 0.1


class TwoMachines:
    """A context manager; its end ends all of it."""

    def __init__(self, config: ServeConfig, core: int, wire: Wire | None = None) -> None:
        """`config`: of the router's machine; `core`: for the one that reads, which is at the other end of the wire.

        Raises: BenchError if that does not join.
        """
        self._folder = tempfile.TemporaryDirectory()
        keys = Path(self._folder.name)
        create_keys(keys, [READER])
        host, prefix = ("127.0.0.1", []) if wire is None else (wire.near, wire.prefix)
        with socket.create_server((host, 0)) as free:
            address = f"{host}:{free.getsockname()[1]}"
        changes = {"cluster_listen": address, "cluster_keys": keys, "prefill": 0, "decode": 1}
        self.server = diptych.serve(config.model_copy(update=changes))
        command = ["worker", "--join", address, "--keys", str(keys / READER), "--node", READER]
        command += ["--prefill", "1", "--decode", "0", "--cores", str(core), "--kv-bytes", str(config.kv_bytes)]
        self._reader = subprocess.Popen(
            [*prefix, sys.executable, "-m", "diptych", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"COLUMNS": "200"},
        )
        try:
            self._wait_until_joined()
        except BaseException:
            self.close()
            raise

    def _wait_until_joined(self) -> None:
        give_up_s = time.monotonic() + JOIN_TIMEOUT_S
        while time.monotonic() < give_up_s:
            workers = httpx.get(f"{self.server.url}/diptych/status").json()["workers"]
            if workers.get(f"{READER}.prefill-0", {}).get("status", {}).get("state") == "ready":
                return
            if self._reader.poll() is not None:
                break
            time.sleep(POLL_S)
        raise BenchError("the machine that reads has not joined")

    def close(self) -> None:
        """End both machines."""
        self._reader.terminate()
        self._reader.wait()
        self.server.close()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()
