"""Disks that are really full, and outputs that take nothing: one line that says what to do, and nothing is lost.

Of models: tests/models/test_conversion.py and test_hub.py; of the segment's memory: tests/transfer/test_segment.py.
"""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from tests.live_process import StartCommand
from tests.live_server import LiveServer, eventually
from tests.small_disk import fill_up, small_disk

from diptych.bench.record import load, load_samples
from diptych.frontend.auth.key_file import read_key_file

MODELED = ("--engine", "modeled", "--modeled-time-scale", "0", "--kv-bytes", "2MB", "--port", "0")
DEV_FULL = Path("/dev/full")


def diptych(*arguments: str, redirections: str = "") -> subprocess.CompletedProcess[str]:
    """Run `diptych` in a shell that redirects some of its streams."""
    command = ["sh", "-c", f'exec "$@" {redirections}', "sh", sys.executable, "-m", "diptych", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def complaint_of(ended: subprocess.CompletedProcess[str]) -> str:
    """Return the one line, besides any progress, that a command ends with that cannot do what it is asked to."""
    (line,) = (line for line in ended.stderr.splitlines() if line.startswith("error: "))
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    return line.removeprefix("error: ")


@pytest.mark.slow
def test_a_key_file_on_a_full_disk_stays_as_it_was(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=16k") as disk:
        file = disk / "keys.toml"
        assert diptych("key", "create", "alice", "--file", str(file)).returncode == 0
        before, filler = file.read_bytes(), fill_up(disk)
        ended = diptych("key", "create", "bob", "--file", str(file))
        assert complaint_of(ended) == f"cannot write the key file {file}, which is as it was: No space left on device"
        assert ended.stdout == "", "no key is shown that opens nothing"
        assert file.read_bytes() == before
        assert set(disk.iterdir()) == {file, filler}, "no half file is left"
        filler.unlink()
        assert diptych("key", "create", "bob", "--file", str(file)).returncode == 0
        assert [key.name for key in read_key_file(file)] == ["alice", "bob"]


@pytest.mark.slow
def test_a_key_that_nobody_can_read_is_not_kept(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    ended = diptych("key", "create", "alice", "--file", str(file), redirections=f"> {DEV_FULL}")
    assert complaint_of(ended) == f"cannot show the key (No space left on device), so {file} does not keep it either"
    assert read_key_file(file) == []


@pytest.mark.slow
def test_a_measurement_keeps_the_runs_that_had_room(shared_modeled_server: LiveServer, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=256k") as disk:
        measured = disk / "first"
        flags = ("bench", "run", shared_modeled_server.url, "--rate", "20", "--duration-s", "1", "--no-report")
        assert diptych(*flags, "--output", str(measured)).returncode == 0
        before = (measured / "result.json").read_bytes()
        fill_up(disk)
        complaint = complaint_of(diptych(*flags, "--output", str(disk / "second")))
        assert complaint == (
            f"cannot write to {disk / 'second'}: No space left on device; make room there, or choose another --output: "
            "what was measured before is kept"
        )
        assert [path.stat().st_size for path in (disk / "second").iterdir()] == [0], "nothing that looks like a result"
        assert (measured / "result.json").read_bytes() == before
        assert len(load_samples(measured, 0)) >= load(measured).runs[0].summary.num_offered > 0
    shared_modeled_server.wait_until_idle()


@pytest.mark.slow
def test_listings_say_that_nobody_can_read_them() -> None:
    for arguments in (("model", "list"), ("--version",), ("--help",)):
        ended = diptych(*arguments, redirections=f"> {DEV_FULL}")
        assert complaint_of(ended) == "cannot write to standard output: No space left on device"
    assert diptych("--version", redirections=">&-").returncode == 0, "closed on purpose: nobody wants to know"
    silent = diptych("status", "--url", "http://127.0.0.1:9", redirections=f"2> {DEV_FULL}")
    assert (silent.returncode, silent.stdout, silent.stderr) == (1, "", "")


@pytest.mark.slow
@pytest.mark.parametrize("redirections", [f"> {DEV_FULL} 2> {DEV_FULL}", "<&- >&- 2>&-"], ids=["full", "closed"])
def test_a_server_whose_output_takes_nothing_serves_all_the_same(
    start_command: StartCommand, redirections: str, tmp_path: Path
) -> None:
    port = 20_000 + os.getpid() % 10_000
    shell = ("sh", "-c", f'exec "$@" {redirections}', "sh")
    arguments = [*MODELED[:-1], str(port)]
    server = start_command("serve", *arguments, prefix=shell)

    def is_ready() -> bool:
        assert server.process.poll() is None
        try:
            return httpx.get(f"http://127.0.0.1:{port}/ready").status_code == 200
        except httpx.HTTPError:
            return False

    eventually(is_ready, "the server")
    live = LiveServer(f"http://127.0.0.1:{port}")
    assert live.complete("Hi").num_output_tokens == 16
    before = live.incarnation("prefill-0")
    os.kill(live.worker("prefill-0")["pid"], signal.SIGKILL)  # which is logged, where that can be done
    eventually(lambda: live.incarnation("prefill-0") > before, "the successor")
    live.wait_until_up("prefill-0")
    assert live.complete("Hi").num_output_tokens == 16
    live.close()
    server.signal(signal.SIGTERM)
    assert server.wait_for_exit() == 0
    server.wait_until_gone()


@pytest.mark.slow
def test_memory_that_the_system_refuses_is_one_line() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "diptych", "serve", *MODELED],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6)),
    )
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == (
        "error: cannot reserve 0.0 GB of shared memory (File too large); lower --kv-bytes, "
        "or raise the limit on file size (ulimit -f)"
    )
