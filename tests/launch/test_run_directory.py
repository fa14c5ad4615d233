"""The directory of a server's sockets: private, and swept when its owner was killed."""

import fcntl
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from diptych.core.errors import LaunchError
from diptych.launch import run_directory
from diptych.launch.run_directory import RunDirectory

OWNER = """
import sys, time
from pathlib import Path
from diptych.launch.run_directory import RunDirectory
directory = RunDirectory(Path(sys.argv[1]))
print(directory.path, flush=True)
time.sleep(600)
"""


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    return tmp_path / "run"


def test_it_is_private_and_goes_with_its_owner(parent: Path) -> None:
    with RunDirectory(parent) as directory:
        assert parent.stat().st_mode & 0o777 == 0o700
        assert directory.path.stat().st_mode & 0o777 == 0o700
        assert directory.endpoint("router") == f"ipc://{directory.path}/router"
    assert not list(parent.iterdir())


def test_the_next_start_sweeps_what_a_killed_server_left_and_nothing_else(parent: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", OWNER, str(parent)], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        path = Path(owner.stdout.readline().strip())
        with RunDirectory(parent):
            assert path.is_dir(), "its owner still lives"
        owner.send_signal(signal.SIGKILL)
        owner.wait(10)
    assert path.is_dir()
    with RunDirectory(parent) as directory:
        assert list(parent.iterdir()) == [directory.path]


def test_a_directory_that_others_may_enter_is_refused(parent: Path) -> None:
    parent.mkdir()
    parent.chmod(0o755)
    with pytest.raises(LaunchError, match="must belong to this user alone"):
        RunDirectory(parent)


def test_closing_twice_is_harmless(parent: Path) -> None:
    directory = RunDirectory(parent)
    directory.close()
    directory.close()
    assert not list(parent.iterdir())


def test_a_directory_that_was_swept_before_it_was_locked_is_made_again(
    parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept: list[Path] = []

    def lock_late(descriptor: int, operation: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink().parent
        if len(swept) < 2:
            swept.append(path)
            shutil.rmtree(path)
        fcntl.flock(descriptor, operation)

    monkeypatch.setattr(
        run_directory, "fcntl", SimpleNamespace(flock=lock_late, LOCK_EX=fcntl.LOCK_EX, LOCK_NB=fcntl.LOCK_NB)
    )
    with RunDirectory(parent) as directory:
        assert len(swept) == 2
        assert directory.path not in swept
        assert directory.path.is_dir()
