"""Programs of a peer are started together, watched, and ended with all that they started and left behind.

Each test supervises in a process of its own: whoever supervises ends all its descendants.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.live_process import processes_with
from tests.live_server import PATIENCE_S, eventually

from peers.command import free_port
from peers.peer import our_path

END_TIMEOUT_S = 2.0
MARK = "DPT_TEST_PEER"
SUPERVISE = """
import json, signal, sys
from pathlib import Path
from diptych.core.errors import BenchError
from peers.peer import Program
from peers.supervise import Supervisor

def stop(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGTERM, stop)
given = json.loads(sys.argv[1])
programs = [Program(name, tuple(command), url, (min(given["cores"]),)) for name, command, url in given["programs"]]
try:
    with Supervisor(programs, Path(given["logs"]), given["end_timeout_s"]) as supervisor:
        supervisor.start()
        supervisor.wait_until_healthy(given["timeout_s"])
        print("healthy", flush=True)
        supervisor.watch()
except BenchError as error:
    print(error)
except KeyboardInterrupt:
    print("stopped")
"""
SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_):
        pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
FAMILY = """
import mmap, os, signal, subprocess, sys
if sys.argv[2] == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
# A session of its own, and its parent ends first: found all the same.
leave = "import subprocess; subprocess.Popen(['sleep', '600'], start_new_session=True)"
subprocess.Popen([sys.executable, "-c", leave])
segment = os.open(sys.argv[3], os.O_RDWR | os.O_CREAT)
os.truncate(segment, 4096)
kept = mmap.mmap(segment, 4096)
"""


def _python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", code, *arguments]


class Supervised:
    """The process that supervises."""

    def __init__(self, tmp_path: Path, programs: Sequence[tuple[str, list[str], str]], timeout_s: float) -> None:
        self.mark = tmp_path.name
        self.logs = tmp_path / "logs"
        given = {
            "programs": programs,
            "logs": str(self.logs),
            "timeout_s": timeout_s,
            "end_timeout_s": END_TIMEOUT_S,
            "cores": sorted(os.sched_getaffinity(0)),
        }
        self.process = subprocess.Popen(
            _python(SUPERVISE, json.dumps(given)),
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **our_path(), MARK: self.mark},
        )

    def first_line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def rest(self) -> str:
        """Wait for the end; return what was printed since."""
        text, _ = self.process.communicate(timeout=PATIENCE_S)
        return text.strip()

    def processes(self) -> dict[int, str]:
        return processes_with(MARK, self.mark)


def _server(port: int) -> tuple[str, list[str], str]:
    return "server", _python(SERVER, str(port)), f"http://127.0.0.1:{port}/"


def _family(port: int, mood: str, segment: Path) -> tuple[str, list[str], str]:
    return "family", _python(FAMILY + SERVER, str(port), mood, str(segment)), f"http://127.0.0.1:{port}/"


@pytest.mark.parametrize("mood", ["meek", "stubborn"])
def test_nothing_is_left_of_what_ran(tmp_path: Path, mood: str) -> None:
    segment = Path(f"/dev/shm/diptych-test-{tmp_path.name}-{os.getpid()}")  # noqa: S108
    one, two = free_port(), free_port()
    supervised = Supervised(tmp_path, [_family(one, mood, segment), _server(two)], PATIENCE_S)
    assert supervised.first_line() == "healthy"
    eventually(lambda: any("sleep" in command for command in supervised.processes().values()), "the grandchild")
    assert segment.exists()
    cores = {tuple(os.sched_getaffinity(pid)) for pid in supervised.processes() if pid != supervised.process.pid}
    assert cores == {(min(os.sched_getaffinity(0)),)}
    supervised.process.send_signal(signal.SIGTERM)
    assert supervised.rest() == "stopped"
    assert not supervised.processes()
    assert not segment.exists()
    assert not supervised.logs.exists()


def test_a_program_that_ends_takes_all_with_it_and_its_last_lines_are_told(tmp_path: Path) -> None:
    code = "print('loading', flush=True); raise SystemExit('no such model')"
    port = free_port()
    programs = [_server(port), ("engine", _python(code), f"http://127.0.0.1:{free_port()}/health")]
    supervised = Supervised(tmp_path, programs, PATIENCE_S)
    told = supervised.rest()
    log = supervised.logs / "engine.log"
    assert told == f"engine ended (status 1); its last lines, of {log}:\n  loading\n  no such model"
    assert log.exists()
    assert not supervised.processes()


def test_a_program_that_is_killed_is_noticed(tmp_path: Path) -> None:
    supervised = Supervised(tmp_path, [_server(free_port())], PATIENCE_S)
    assert supervised.first_line() == "healthy"
    (server,) = (pid for pid in supervised.processes() if pid != supervised.process.pid)
    os.kill(server, signal.SIGKILL)
    assert supervised.rest() == "server ended (SIGKILL); it printed nothing"


def test_a_program_that_never_answers_is_given_up(tmp_path: Path) -> None:
    program = ("silent", _python("import time; time.sleep(600)"), f"http://127.0.0.1:{free_port()}/")
    supervised = Supervised(tmp_path, [program], 0.5)
    assert supervised.rest() == "silent does not answer after 0 s; it printed nothing"
    assert not supervised.processes()


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    supervised = Supervised(tmp_path, [("ghost", ["/no/such/python"], "http://127.0.0.1:1/")], 5.0)
    assert supervised.rest().startswith("cannot start ghost: ")


def test_programs_end_when_their_supervisor_is_killed(tmp_path: Path) -> None:
    supervised = Supervised(tmp_path, [_server(free_port())], PATIENCE_S)
    assert supervised.first_line() == "healthy"
    supervised.process.kill()
    supervised.rest()
    eventually(lambda: not supervised.processes(), "the end of all programs")
