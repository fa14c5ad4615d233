"""A wire with a delay: what goes over it is late, and whole."""

import socket
import subprocess
import sys
import time

import pytest

from diptych.core.errors import BenchError
from harness.wire import Wire

ECHO = """
import socket, sys
listener = socket.create_server((sys.argv[1], 0))
print(listener.getsockname()[1], flush=True)
connection, _ = listener.accept()
while data := connection.recv(65536):
    connection.sendall(data)
"""
DELAY_S = 0.02


@pytest.mark.parametrize("loss", [0.0, 0.02])
def test_what_goes_over_a_wire_is_late_and_whole(loss: float) -> None:
    try:
        wire = Wire(DELAY_S, 1e8, loss)
    except BenchError as error:
        pytest.skip(f"no wire can be made here: {error}")
    with wire:
        command = [*wire.prefix, sys.executable, "-c", ECHO, wire.far]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as echo:
            assert echo.stdout is not None
            port = int(echo.stdout.readline())
            with socket.create_connection((wire.far, port), 30) as connection:
                connection.settimeout(30)
                begin_s = time.monotonic()
                connection.sendall(b"x")
                assert connection.recv(1) == b"x"
                assert time.monotonic() - begin_s >= 2 * DELAY_S
                sent = bytes(range(256)) * 500
                connection.sendall(sent)
                received = b""
                while len(received) < len(sent):
                    received += connection.recv(65536)
                assert received == sent
