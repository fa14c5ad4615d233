"""A certificate that changes on disk: new connections see the new one, and a broken one changes nothing."""

import asyncio
import contextlib
import logging
import shutil
import socket
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
import uvloop
from tests.certificates import make_certificate, shown_certificate

from diptych.core.clock import VirtualClock
from diptych.frontend.tls import ServerTls, client_tls
from diptych.frontend.watched_files import RECHECK_S


@contextlib.contextmanager
def echoing(tls: ServerTls) -> Iterator[int]:
    """Send back what comes, on the event loop that serves; the port."""
    started: Future[tuple[int, asyncio.Event, asyncio.AbstractEventLoop]] = Future()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Clients end when they have seen enough, and the event loop cancels who is still read from (a task that
        # ends cancelled would be logged by asyncio.streams as an error).
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            while data := await reader.read(100):
                writer.write(data)
        writer.close()

    async def serve() -> None:
        is_over = asyncio.Event()
        server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls.context)
        started.set_result((server.sockets[0].getsockname()[1], is_over, asyncio.get_running_loop()))
        await is_over.wait()
        server.close()

    thread = threading.Thread(target=lambda: uvloop.run(serve()))
    thread.start()
    port, is_over, loop = started.result(20)
    try:
        yield port
    finally:
        loop.call_soon_threadsafe(is_over.set)
        thread.join(20)


def told(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """What Diptych logged, without the lines of the event loop on connections that clients dropped."""
    return [record for record in caplog.records if record.name.startswith("diptych.")]


def test_a_renewed_certificate_is_shown_to_new_connections(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    certificate, key = make_certificate(tmp_path / "used")
    old, new = certificate.read_text(), make_certificate(tmp_path / "new")
    clock = VirtualClock()
    with echoing(ServerTls(certificate, key, clock)) as port:
        trusting = client_tls(certificate)
        with (
            socket.create_connection(("127.0.0.1", port), 20) as connection,
            trusting.wrap_socket(connection, server_hostname="127.0.0.1") as kept,
        ):
            shutil.copy(new[0], certificate)
            clock.sleep(RECHECK_S)
            assert shown_certificate(port) == old, "the key is still the old one's: they do not fit yet"
            shutil.copy(new[1], key)
            clock.sleep(RECHECK_S)
            assert shown_certificate(port) == new[0].read_text()
            assert shown_certificate(port, "test") == new[0].read_text(), "also to who says whom it wants"
            kept.sendall(b"still here")
            assert kept.recv(100) == b"still here"
        with pytest.raises(ssl.SSLError), socket.create_connection(("127.0.0.1", port), 20) as connection:
            trusting.wrap_socket(connection, server_hostname="127.0.0.1")
    assert [record.levelno for record in told(caplog)] == [logging.WARNING]


@pytest.mark.parametrize("breakage", ["half a file", "no file"])
def test_a_broken_file_keeps_the_certificate_and_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, breakage: str
) -> None:
    certificate, key = make_certificate(tmp_path)
    whole, clock = certificate.read_text(), VirtualClock()
    with echoing(ServerTls(certificate, key, clock)) as port:
        if breakage == "no file":
            certificate.unlink()
        else:
            certificate.write_text(whole[: len(whole) // 2])
        for _ in range(3):
            clock.sleep(RECHECK_S)
            assert shown_certificate(port) == whole
    (record,) = told(caplog)
    assert record.levelno == logging.WARNING
    assert "the certificate stays as it was: --tls-cert" in record.message
