import os
import sys
import time
from pathlib import Path

import pytest
from tests.live_process import state_of

from diptych.core.errors import ModelError
from diptych.models.child import Deadlines, Program, run_program

SOON = Deadlines(total_s=30.0)
STARTS_A_CHILD = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open(sys.argv[1], "w").write(str(child.pid))
"""


def _python(code: str, *arguments: str, deadlines: Deadlines = SOON, env: dict[str, str] | None = None) -> Program:
    return Program([sys.executable, "-c", code, *arguments], "the test", deadlines, env=env or {})


def _is_running(pid: int) -> bool:
    try:
        state = state_of(pid)
    except FileNotFoundError:
        return False
    return state != "Z"


def test_output_code_and_environment_come_through() -> None:
    code = "import os, sys; print(os.environ['DIPTYCH_X']); sys.stderr.write('a\\nlast\\n\\n'); sys.exit(3)"
    ended = run_program(_python(code, env={"DIPTYCH_X": "yes"}))
    assert (ended.exit_code, ended.stdout, ended.last_words, ended.death) == (3, "yes\n", "last", None)


def test_a_signal_is_named() -> None:
    ended = run_program(_python("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"))
    assert ended.death == "SIGSEGV"


def test_a_program_that_takes_too_long_is_killed_with_its_children(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    code = STARTS_A_CHILD + "child.wait()"
    with pytest.raises(ModelError, match="the test did not end within 1 s"):
        run_program(_python(code, str(pid_file), deadlines=Deadlines(total_s=1.0)))
    _wait_until_gone(int(pid_file.read_text()))


def test_what_a_program_leaves_running_is_killed(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    code = STARTS_A_CHILD.replace("])", "], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)", 1)
    assert run_program(_python(code, str(pid_file))).exit_code == 0
    _wait_until_gone(int(pid_file.read_text()))


def _wait_until_gone(pid: int) -> None:
    deadline_s = time.monotonic() + 10
    while _is_running(pid):
        assert time.monotonic() < deadline_s, "still running"
        time.sleep(0.01)


def test_a_program_without_progress_is_killed() -> None:
    with pytest.raises(ModelError, match="the test made no progress for 0 s"):
        run_program(_python("import time; time.sleep(60)", deadlines=Deadlines(total_s=60.0, idle_s=0.3)))


def test_progress_is_told_and_keeps_a_program_alive(tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    heard: list[int] = []

    def measure() -> int:
        if len(heard) == 5:
            stop.touch()
        return len(heard) + 1

    code = "import os, sys, time\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.01)"
    program = _python(code, str(stop), deadlines=Deadlines(total_s=60.0, idle_s=0.5))
    assert run_program(program, measure_bytes=measure, on_bytes=heard.append).exit_code == 0
    assert heard[:5] == [1, 2, 3, 4, 5]


def test_a_held_descriptor_is_open_in_the_program(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as file:
        number = file.fileno()
        code = f"import os; os.write({number}, b'seen')"
        ended = run_program(Program([sys.executable, "-c", code], "the test", SOON, held_fd=number))
        assert ended.exit_code == 0
        assert not os.get_inheritable(number)
    assert (tmp_path / "lock").read_text() == "seen"
