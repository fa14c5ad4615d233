"""Real servers in real processes, shared where harmless, and a check that nothing of them is left at the end."""

import os
import shutil
import signal
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from tests.cluster.hosts import why_no_namespaces
from tests.live_process import SESSION_MARK, Command, StartCommand, processes_with
from tests.live_server import LiveServer, Serving, StartServer

from diptych.core.config import ServeConfig
from diptych.frontend.text.tokenizer import Tokenizer
from diptych.launch.server import serve
from diptych.models import resolve

# How long an example takes depends on who else uses the cores: it decides no test.
settings.register_profile("diptych", deadline=None)
settings.load_profile("diptych")

MODEL = "smollm2-135m-instruct"
MODELED_KV_BYTES = 2_000_000
"""About 5,000 blocks of the modeled engine, whose tokens take 8 bytes each."""


def pytest_configure() -> None:
    """Let children hear Ctrl-C, which whoever was started in the background by a shell does not."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    """Say on what kind of machines the tests of clusters run."""
    reason = why_no_namespaces()
    if reason is None:
        return "tests/cluster: hosts have networks and clocks of their own"
    return f"tests/cluster: hosts are loopback addresses with one clock, since namespaces are not to be had ({reason})"


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    session = uuid.uuid4().hex
    # A socket's path may have 107 bytes, so not below pytest's own deep directory.
    runtime = Path(tempfile.mkdtemp(prefix="dpt-"))
    shm_before = set(os.listdir("/dev/shm"))  # noqa: PTH208, S108
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SESSION_MARK, session)
        patch.setenv("XDG_RUNTIME_DIR", str(runtime))
        yield
    processes = processes_with(SESSION_MARK, session)
    # Python's own helper of shared memory lives as long as this process.
    left = {pid: command for pid, command in processes.items() if "resource_tracker" not in command}
    sockets = [str(path) for path in runtime.rglob("*") if path.name != "diptych"]
    shm = {name for name in set(os.listdir("/dev/shm")) - shm_before if "diptych" in name}  # noqa: PTH208, S108
    shutil.rmtree(runtime, ignore_errors=True)  # a cleaner of /tmp may have been faster
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert (left, _zombies(), sockets, shm) == ({}, [], [], set()), "processes, zombies, sockets, shared memory"


def _zombies() -> list[str]:
    lines = [path.read_text() for path in Path("/proc").glob("[0-9]*/stat") if path.exists()]
    fields = [line.rpartition(")")[2].split() for line in lines]
    return [
        line
        for line, (state, parent, *_) in zip(lines, fields, strict=True)
        if state == "Z" and int(parent) == os.getpid()
    ]


@pytest.fixture(scope="session")
def model_dir() -> Path:
    """Return the folder of the default model; fetched and converted the first time."""
    return resolve(MODEL).path


@pytest.fixture(scope="session")
def tokenizer(model_dir: Path) -> Tokenizer:
    return Tokenizer(model_dir)


@contextmanager
def serving(**changes: Any) -> Iterator[LiveServer]:
    """Serve as a library does. With the modeled engine no time passes unless a test asks for it.

    Phases stay apart unless a test asks for something else, so that it knows who does what.
    """
    changes = {"adaptive": False, "port": 0} | changes
    if changes.get("engine") == "modeled":
        changes = {"modeled_time_scale": 0.0, "kv_bytes": MODELED_KV_BYTES} | changes
    else:  # answers must be equal on every path, which bf16 does not promise where the CPU has it
        changes = {"kv_dtype": "f32"} | changes
    with serve(ServeConfig(**changes)) as server, closing(LiveServer(server.url)) as live:
        yield live


@pytest.fixture(name="serving", scope="session")
def serving_fixture() -> Serving:
    """Hand out `serving`, for servers that live as long as the test wants."""
    return serving


@pytest.fixture
def modeled_server() -> Iterator[StartServer]:
    """Start servers with the modeled engine; they end with the test."""
    with ExitStack() as running:
        yield lambda **changes: running.enter_context(serving(engine="modeled", **changes))


@pytest.fixture(scope="session")
def shared_modeled_server() -> Iterator[LiveServer]:
    """One prefill and one decode worker that take no time. Leave it idle."""
    with serving(engine="modeled") as live:
        yield live


@pytest.fixture(scope="session")
def smol_server(model_dir: Path) -> Iterator[LiveServer]:
    """The real model on one prefill and one decode worker, which compare checksums of KV. Leave it idle."""
    del model_dir  # so that fetching it does not count against the server's start
    with serving(kv_checksums=True) as live:
        yield live


@pytest.fixture
def start_command(tmp_path: Path) -> Iterator[StartCommand]:
    """Start `diptych` with arguments, `variables` for its environment, and a `prefix` such as taskset."""
    with ExitStack() as running:

        def start(*arguments: str, variables: dict[str, str] | None = None, prefix: Sequence[str] = ()) -> Command:
            command = Command(tmp_path, arguments, variables or {}, prefix)
            running.callback(command.close)
            return command

        yield start
