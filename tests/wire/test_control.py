"""The launcher's socket to a process: typed lines, and the end of one as the end of the other."""

import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.core.control import ClusterReady, FrontendListening, LayoutReport, Lease, StartFailure, ToLauncher
from diptych.core.cost_model import CostModel
from diptych.core.errors import LaunchError, ProtocolError
from diptych.wire import control
from diptych.wire.control import EXIT_STATUS_ORPHANED, ControlChannel

PATIENCE_S = 30.0
CHILD = """
import sys, threading
from diptych.core.control import ClusterReady, FromLauncher
from diptych.wire.control import ControlChannel
channel = ControlChannel.of_descriptor(int(sys.argv[1]), FromLauncher)
channel.end_process_with_launcher()
channel.send(ClusterReady())
threading.Event().wait(60)
"""

Ends = tuple[ControlChannel[ToLauncher], socket.socket]


@pytest.fixture
def ends() -> Iterator[Ends]:
    """Return the launcher's channel, and the bare socket at the other end."""
    ours, theirs = socket.socketpair()
    channel: ControlChannel[ToLauncher] = ControlChannel(ours, ToLauncher)
    yield channel, theirs
    theirs.close()
    channel.close()


def test_lines_arrive_one_by_one_however_they_were_cut(ends: Ends) -> None:
    channel, theirs = ends
    sender: ControlChannel[ToLauncher] = ControlChannel(theirs, ToLauncher)
    report = LayoutReport(block_size=32, block_bytes=256, fingerprint="f" * 100_000, engine="e")
    for message in (FrontendListening(port=8000), StartFailure(message="no\nline breaks, é"), ClusterReady()):
        sender.send(message)
    assert channel.receive(PATIENCE_S) == FrontendListening(port=8000)
    assert channel.receive(PATIENCE_S) == StartFailure(message="no\nline breaks, é")
    assert channel.receive(PATIENCE_S) == ClusterReady()
    sender.send(report)
    assert channel.receive(PATIENCE_S) == report


def test_silence_and_an_end_are_told_apart(ends: Ends) -> None:
    channel, theirs = ends
    with pytest.raises(LaunchError, match="no answer within"):
        channel.receive(0.01)
    theirs.sendall(b'{"type":"ClusterReady"')
    theirs.close()
    with pytest.raises(LaunchError, match="has ended"):
        channel.receive(PATIENCE_S)


def test_what_was_said_before_the_end_is_still_heard(ends: Ends) -> None:
    channel, theirs = ends
    theirs.sendall(b'{"type":"StartFailure","message":"because"}\n')
    theirs.close()

    assert channel.receive(PATIENCE_S) == StartFailure(message="because")


def test_speaking_to_the_dead_is_no_error(ends: Ends) -> None:
    channel, theirs = ends
    theirs.close()

    for _ in range(3):
        channel.send(Lease(max_model_len=2, costs=CostModel.linear(0.0, 0.0, 0.0), lives={}))


@pytest.mark.parametrize(
    "line",
    [b"", b"nonsense", b"{}", b'{"type":"Lease"}', b'{"type":"FrontendListening"}', b"\xff", b'{"a":' + b"[" * 10**5],
)
def test_a_malformed_line_is_an_error_and_the_next_one_is_read(ends: Ends, line: bytes) -> None:
    channel, theirs = ends
    theirs.sendall(line + b"\n" + b'{"type":"ClusterReady"}\n')

    with pytest.raises(ProtocolError, match="malformed"):
        channel.receive(PATIENCE_S)
    assert channel.receive(PATIENCE_S) == ClusterReady()


@given(st.binary(max_size=200), st.integers(1, 50))
def test_random_bytes_are_errors_and_the_next_line_is_read(noise: bytes, num_bytes_at_once: int) -> None:
    ours, theirs = socket.socketpair()
    channel: ControlChannel[ToLauncher] = ControlChannel(ours, ToLauncher)
    sent = noise + b"\n" + b'{"type":"ClusterReady"}\n'
    for begin in range(0, len(sent), num_bytes_at_once):
        theirs.sendall(sent[begin : begin + num_bytes_at_once])
    for _ in range(noise.count(b"\n") + 1):
        with pytest.raises(ProtocolError, match="malformed"):
            channel.receive(PATIENCE_S)
    assert channel.receive(PATIENCE_S) == ClusterReady()
    theirs.close()
    channel.close()


def test_a_line_without_end_is_cut_off(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    channel, theirs = ends
    monkeypatch.setattr(control, "MAX_LINE_BYTES", 1000)
    theirs.sendall(b"x" * 2000)

    with pytest.raises(ProtocolError, match="too long"):
        channel.receive(PATIENCE_S)


@pytest.fixture
def orphan() -> Iterator[tuple[ControlChannel[ToLauncher], subprocess.Popen[bytes]]]:
    """Return a process that ends with its launcher, and the launcher's end of its socket."""
    ours, theirs = socket.socketpair()
    process = subprocess.Popen([sys.executable, "-c", CHILD, str(theirs.fileno())], pass_fds=[theirs.fileno()])
    theirs.close()
    channel: ControlChannel[ToLauncher] = ControlChannel(ours, ToLauncher)
    yield channel, process
    channel.close()
    process.kill()
    process.wait()


def test_a_process_ends_with_its_launcher(orphan: tuple[ControlChannel[ToLauncher], subprocess.Popen[bytes]]) -> None:
    channel, process = orphan
    assert channel.receive(PATIENCE_S) == ClusterReady()
    descriptor = os.pidfd_open(process.pid)
    ended, _, _ = select.select([descriptor], [], [], 0)
    os.close(descriptor)
    assert not ended, "it ended while its launcher lives"

    channel.close()  # as the kernel does when the launcher is killed

    assert process.wait(PATIENCE_S) == EXIT_STATUS_ORPHANED
