"""Many streams at once, read with as little work as possible: for measuring the server, not the client."""

import json
import selectors
import socket
import time
from dataclasses import dataclass, field
from typing import Any

import httpx

from diptych.core.errors import BenchError

TOKEN_MARK = b'"finish_reason":null'
"""Stands once in each event that brings text, and in no other."""
END_MARK = b"data: [DONE]"
PATIENCE_S = 60.0
RECEIVE_BYTES = 1 << 16


@dataclass(slots=True)
class RawStream:
    """One stream: when events came, and how many together."""

    connection: socket.socket
    times_s: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    is_done: bool = False
    _tail: bytes = b""
    """The last bytes that came: a mark may be cut in two."""

    @property
    def num_events(self) -> int:
        """Events with text."""
        return sum(self.counts)

    def push(self, data: bytes, time_s: float) -> None:
        """Take in what came at `time_s`."""
        seen = self._tail + data
        count = seen.count(TOKEN_MARK)
        if count:
            self.times_s.append(time_s)
            self.counts.append(count)
        self.is_done = self.is_done or END_MARK in seen
        self._tail = seen[-(len(TOKEN_MARK) - 1) :]


def run_streams(url: str, body: dict[str, Any], num_streams: int) -> list[RawStream]:
    """Send `body` to /v1/completions that often at once; return when all streams have ended.

    Raises: BenchError if one breaks off or nothing comes for a minute.
    """
    address = httpx.URL(url)
    content = json.dumps(body | {"stream": True}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: benchmark\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content
    with selectors.DefaultSelector() as selector:
        streams: list[RawStream] = []
        for _ in range(num_streams):
            connection = socket.create_connection((address.host, address.port or 80), PATIENCE_S)
            connection.sendall(request)
            connection.setblocking(False)
            streams.append(RawStream(connection))
            selector.register(connection, selectors.EVENT_READ, streams[-1])
        try:
            _read_all(selector)
        finally:
            for stream in streams:
                stream.connection.close()
    return streams


def _read_all(selector: selectors.DefaultSelector) -> None:
    while selector.get_map():
        ready = selector.select(PATIENCE_S)
        if not ready:
            raise BenchError(f"no event came within {PATIENCE_S:.0f} s")
        for key, _ in ready:
            stream: RawStream = key.data
            data = stream.connection.recv(RECEIVE_BYTES)
            stream.push(data, time.monotonic())
            if stream.is_done:
                selector.unregister(stream.connection)
            elif not data:
                raise BenchError("a stream broke off; the server's log says why")
