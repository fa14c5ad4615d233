"""The real command line as users start it, timed from the outside."""

import os
import re
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Self

from diptych.core.errors import BenchError

READY_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 60.0
_READY_LINE = re.compile(r"^Diptych serves (\S+) at (\S+)$", re.MULTILINE)
_LAUNCHER_TIME = re.compile(r"is ready after (\d+(?:\.\d+)?) s")


class CliServer:
    """`diptych serve` in a process of its own. A context manager; its end stops the server in order."""

    def __init__(self, arguments: Sequence[str]) -> None:
        """Start it and return when it says where it listens.

        Raises: BenchError if it does not.
        """
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed with the server
        command = [sys.executable, "-m", "diptych", "serve", "--port", "0", *arguments]
        begin_s = time.monotonic()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "COLUMNS": "200"},  # so that no line that is looked for is wrapped
        )
        try:
            self.model, self.url = self._read_until_ready(begin_s + READY_TIMEOUT_S)
        except BaseException:
            self.close()
            raise
        self.ready_after_s = time.monotonic() - begin_s
        """From the start of the process to the line that says where it listens."""
        self.launcher_s = self._launcher_s()
        """Of that, the time since the launcher began to start processes, as the server says itself (to 0.1 s)."""

    @property
    def pid(self) -> int:
        """Process id of the launcher."""
        return self._process.pid

    def _read_until_ready(self, deadline_s: float) -> tuple[str, str]:
        output = self._process.stdout
        assert output is not None
        text = ""
        with selectors.DefaultSelector() as selector:
            selector.register(output, selectors.EVENT_READ)
            while (match := _READY_LINE.search(text)) is None:
                if not selector.select(max(deadline_s - time.monotonic(), 0.0)):
                    raise BenchError(f"diptych serve was not ready within {READY_TIMEOUT_S:.0f} s")
                data = os.read(output.fileno(), 65536)
                if not data:
                    raise BenchError(f"diptych serve ended while starting: {self._error_text()[-500:].strip()}")
                text += data.decode(errors="replace")
        return match[1], match[2]

    def _error_text(self) -> str:
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")

    def _launcher_s(self) -> float:
        match = _LAUNCHER_TIME.search(self._error_text())
        if match is None:
            raise BenchError("diptych serve no longer says `is ready after N s`; mend harness/cli_server.py")
        return float(match[1])

    def close(self) -> None:
        """Stop the server and wait for its end; kill it if that does not come."""
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()  # its children end with it
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._errors.close()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()
