"""`diptych top`: a frame for pipes, a picture that fits the terminal, and its ends."""

import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from fcntl import ioctl

import msgspec
import pytest
from rich.console import Console
from tests.live_process import StartCommand
from tests.live_server import LiveServer

from diptych.cli.top_view import Seen, render, spans_of
from diptych.core.events import UNFINISHED, Lifecycle, RequestRecord
from diptych.core.feed import Frame
from diptych.launch.server import Remote
from diptych.launch.watching import watch

COLUMNS, LINES = 80, 24
PATIENCE_S = 30.0


def test_one_frame(start_command: StartCommand, shared_modeled_server: LiveServer) -> None:
    shared_modeled_server.complete(list(range(10, 100)), max_tokens=20)
    command = start_command("top", "--once", "--url", shared_modeled_server.url)
    assert command.wait_for_exit() == 0, command.stderr
    for told in (
        r"smollm2-135m-instruct, ready",
        r"prefill-0 +ready",
        r"decode-0 +ready",
        r"first token +\d",
        "SLO met",
    ):
        assert re.search(told, command.stdout), told
    assert re.search(r"length +90 +\d+ +20 ", command.stdout), "the request"


def test_without_a_server_it_says_so(start_command: StartCommand) -> None:
    command = start_command("top", "--url", "http://127.0.0.1:9")
    assert command.wait_for_exit() == 1
    assert command.stderr.startswith("error: no Diptych server answers at http://127.0.0.1:9")


def test_without_a_terminal_it_says_what_to_do(start_command: StartCommand, shared_modeled_server: LiveServer) -> None:
    command = start_command("top", "--url", shared_modeled_server.url)
    assert command.wait_for_exit() == 1
    assert "with --once it prints one frame" in command.stderr


@contextmanager
def at_terminal(url: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run `diptych top` at a terminal of 80 columns and 24 lines."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "", "LINES": ""}
    process = subprocess.Popen(
        [sys.executable, "-m", "diptych", "top", "--url", url],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={name: value for name, value in environment.items() if value},
        start_new_session=True,
    )
    os.close(theirs)
    try:
        yield process, ours
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def read_until(terminal: int, wanted: str) -> str:
    """Return what the terminal shows, up to and with `wanted`."""
    shown, give_up_s = "", time.monotonic() + PATIENCE_S
    while wanted not in shown:
        assert time.monotonic() < give_up_s, shown
        if select.select([terminal], [], [], 0.1)[0]:
            shown += os.read(terminal, 65536).decode(errors="replace")
    return shown


@pytest.mark.parametrize("end", ["q", "interrupt"])
def test_it_watches_at_a_terminal_until_it_is_told_to_end(shared_modeled_server: LiveServer, end: str) -> None:
    with at_terminal(shared_modeled_server.url) as (process, terminal):
        read_until(terminal, "decode-0")
        ended = shared_modeled_server.status()["num_ended"]
        shared_modeled_server.complete([11, 12, 13], max_tokens=4)
        read_until(terminal, f"{ended + 1} ended")
        if end == "q":
            os.write(terminal, b"q")
        else:
            process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) in {0, 130}


# The picture


def record(outcome: str, **moments: float) -> RequestRecord:
    return RequestRecord(
        request_id="cmpl-0123456789abcdef0123456789abcdef",
        outcome=outcome,
        decode_worker="decode-0",
        prefill_worker="prefill-0",
        num_prompt_tokens=12_345,
        num_cached_tokens=4_096,
        num_output_tokens=1_024,
        num_preemptions=0,
        timeline={Lifecycle(name): moment_s for name, moment_s in moments.items()},
    )


ENDED = {"arrived": 1.0, "prefill_started": 2.0, "first_token": 4.0, "joined": 4.001, "finished": 9.0}


def test_phases_follow_each_other() -> None:
    spans = spans_of(record("stop", **ENDED), now_s=99.0)
    assert [span.phase for span in spans] == ["queued", "prefill", "hand-over", "decode"]
    assert [round(span.duration_s, 3) for span in spans] == [1.0, 2.0, 0.001, 4.999]
    assert [span.phase for span in spans_of(record(UNFINISHED, arrived=1.0, routed=1.0), now_s=3.0)] == ["queued"]


@pytest.mark.parametrize("num_requests", [0, 3, 60])
def test_a_picture_fits_the_terminal(one_frame: Frame, num_requests: int) -> None:
    seen = Seen()
    running = [record(UNFINISHED, arrived=1.0, prefill_started=1.5) for _ in range(num_requests)]
    seen.take(msgspec.structs.replace(one_frame, running=running, ended=[record("failed", **ENDED)]))
    console = Console(width=COLUMNS, height=LINES, force_terminal=True)
    lines = console.render_lines(render(seen, COLUMNS, LINES), pad=False)
    assert len(lines) <= LINES
    assert all(sum(part.cell_length for part in line) <= COLUMNS for line in lines)
    text = "\n".join("".join(part.text for part in line) for line in lines)
    assert "12,345" in text and "decode-0" in text


@pytest.fixture
def one_frame(shared_modeled_server: LiveServer) -> Frame:
    with closing(watch(Remote(shared_modeled_server.url))) as frames:
        return next(frames)
