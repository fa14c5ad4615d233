"""Servers are named by address or command; what was started is ended, and what does not come up says why."""

import asyncio
import os
import sys
from pathlib import Path

import pytest
from tests.live_process import state_of
from tests.live_server import eventually

from diptych.bench.target import ApiOptions, Target
from diptych.core.errors import BenchError, ConfigError

OPTIONS = ApiOptions()


@pytest.mark.parametrize(
    ("text", "name", "url"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("vllm=http://h:1/v1", "vllm", "http://h:1/v1"),
        ("http://h:1/?a=b", "http://h:1/?a=b", "http://h:1/?a=b"),
    ],
)
def test_an_address(text: str, name: str, url: str) -> None:
    assert Target.parse(text) == Target(name, url)


def test_a_command() -> None:
    own = Target.parse("diptych serve --mixed 1")
    assert own.name == "diptych serve --mixed 1"
    assert own.command == (sys.executable, "-m", "diptych", "serve", "--mixed", "1", "--port", "{port}")
    other = Target.parse("peer=env A=1 server 'with space' --port={port}")
    assert (other.name, other.command) == ("peer", ("env", "A=1", "server", "with space", "--port={port}"))
    assert Target.parse("A_1=diptych serve").name == "A_1"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("server --listen", "say with {port} where the port goes"),
        ("diptych bench", "starts a server, not"),
        ("", "an address or a command"),
        ("x 'y", "cannot be read"),
        ("name=http://", "a server's address"),
    ],
)
def test_anything_else_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        Target.parse(text)


def serve_briefly(target: Target, timeout_s: float) -> None:
    async def main() -> None:
        async with target.serving(OPTIONS, timeout_s):
            raise AssertionError("it came up")

    asyncio.run(main())


def test_a_server_that_ends_while_starting_says_its_last_words() -> None:
    command = f"{sys.executable} -c 'import sys; sys.exit(\"no model at \" + sys.argv[1])' {{port}}"
    with pytest.raises(BenchError, match=r"x ended while starting \(status 1\): no model at \d+"):
        serve_briefly(Target.parse(f"x={command}"), 20.0)


def test_a_server_that_does_not_come_up_is_ended_with_its_children(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = tmp_path / "server.py"
    script.write_text(
        "import os, signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit())\n"
        "child = subprocess.Popen(['sleep', '300'])\n"
        f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        "time.sleep(300)\n"
    )
    with pytest.raises(BenchError, match="no answer within 1 s: no connection"):
        serve_briefly(Target.parse(f"{sys.executable} {script} {{port}}"), 1.0)
    for pid in map(int, pids.read_text().split()):
        eventually(lambda pid=pid: not is_running(pid), f"the end of {pid}")  # type: ignore[misc]


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in state_of(pid)


def test_a_command_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"cannot be started: .*no-such-program"):
        serve_briefly(Target.parse("/no-such-program {port}"), 1.0)


def test_an_address_where_nobody_listens() -> None:
    with pytest.raises(ConfigError, match="is a server running there"):
        serve_briefly(Target.parse("http://127.0.0.1:9"), 1.0)
