"""Libraries that never end, crash, or lose what they read: their process is ended, and blocks come by another way."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.live_process import state_of
from tests.transfer.machines import Machine, outcome, scripted_carrier, wait_for

from diptych.core.errors import TransferError
from diptych.transfer import carrier, link

DEADLINE_S = 0.5
FAULTS = ["never ends", "does not return", "is lost", "crashes", "raises", "fails"]


@pytest.fixture(autouse=True)
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carrier, "READ_TIMEOUT_S", DEADLINE_S)
    monkeypatch.setattr(carrier, "RESTART_S", 0.1)
    monkeypatch.setattr(link, "REST_S", 0.3)


@pytest.mark.parametrize("fault", FAULTS)
def test_what_a_library_does_not_bring_comes_inline_and_nothing_comes_late(fault: str) -> None:
    with Machine("sender", carried="reads") as sender, Machine("owner", carried=fault) as receiver:
        receiver.grant(7, sender, [4, 5])

        assert outcome(sender.push(receiver, 7, [(1, 4), (2, 5)])) is None

        for _ in range(5):
            assert [receiver.block(4), receiver.block(5)] == [sender.block(1), sender.block(2)]
            time.sleep(0.02)
        receiver.grants.close(7)
        assert receiver.grants.is_quiet(7)


@pytest.mark.parametrize("fault", ["never ends", "does not return"])
def test_blocks_are_kept_until_the_process_has_ended_that_moves_them(fault: str) -> None:
    with Machine("sender", carried="reads") as sender, Machine("owner", carried=fault) as receiver:
        receiver.grant(7, sender, [4])
        before = receiver.block(4)
        push = sender.push(receiver, 7, [(1, 4)])
        assert wait_for(lambda: receiver.block(4) != before), "something moves"
        receiver.grants.close(7)
        assert not receiver.grants.is_quiet(7)

        assert wait_for(lambda: receiver.grants.is_quiet(7), 10 * DEADLINE_S), "no longer than a read may take"
        after = receiver.block(4)
        time.sleep(0.05)
        assert receiver.block(4) == after
        assert outcome(push) is not None, "nothing is granted any more"


def test_a_carrier_that_has_ended_is_used_again_after_a_rest(tmp_path: Path) -> None:
    log = tmp_path / "reads"
    with Machine("sender", carried="reads") as sender, Machine("owner", carried=f"crashes:{log}") as receiver:
        receiver.grant(7, sender, range(10))
        assert outcome(sender.push(receiver, 7, [(1, 4)])) is None
        assert log.read_text().split() == ["crashes"]
        assert wait_for(lambda: receiver.transports["scripted"].life == 2)
        time.sleep(link.REST_S)

        assert outcome(sender.push(receiver, 7, [(2, 5)])) is None
        assert receiver.block(5) == sender.block(2)
        assert log.read_text().split() == ["crashes", "reads"]


def test_a_senders_carrier_that_has_ended_is_described_anew(tmp_path: Path) -> None:
    log = tmp_path / "reads"
    log.touch()
    with Machine("sender", carried="reads") as sender, Machine("owner", carried=f"reads:{log}") as receiver:
        receiver.grant(7, sender, range(10))
        assert outcome(sender.push(receiver, 7, [(1, 4)])) is None
        kill_carrier(sender)
        assert wait_for(lambda: sender.transports["scripted"].life == 2)
        assert outcome(sender.push(receiver, 7, [(2, 5)])) is None
        assert receiver.block(5) == sender.block(2)
        assert log.read_text().split() == ["reads", "reads"]


def test_another_peer_loses_nothing_when_the_carrier_is_ended() -> None:
    with (
        Machine("one", carried="reads") as sender,
        Machine("another", carried="reads") as other,
        Machine("owner", carried="never ends") as receiver,
    ):
        receiver.grant(7, sender, [4])
        receiver.grant(8, other, [5])
        pushes = [other.push(receiver, 8, [(2, 5)]), sender.push(receiver, 7, [(1, 4)])]
        assert [outcome(push) for push in pushes] == [None, None]
        assert [receiver.block(4), receiver.block(5)] == [sender.block(1), other.block(2)]


@pytest.mark.parametrize(
    ("behaviour", "words"), [("is missing", "no such library"), ("does not start", "its library does not start")]
)
def test_a_library_that_cannot_be_used_is_told_of(behaviour: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carrier, "START_TIMEOUT_S", 1.0)
    with Machine("owner") as machine, pytest.raises(TransferError, match=words):
        scripted_carrier(behaviour, machine.memory)


def test_peers_that_describe_themselves_as_anything_are_refused() -> None:
    with Machine("owner", carried="reads") as machine:
        for description in (b"", b"\x93\x01\x02", os.urandom(100)):
            with pytest.raises(TransferError, match="nothing that is known"):
                machine.transports["scripted"].connect(description, 10)


def test_a_carrier_ends_with_its_worker_even_in_the_midst_of_a_call() -> None:
    program = (
        "import threading\n"
        "from tests.transfer.machines import Machine\n"
        "with Machine('sender', carried='reads') as sender, Machine('owner', carried='does not return') as receiver:\n"
        "    receiver.grant(7, sender, [4])\n"
        "    before = receiver.block(4)\n"
        "    sender.push(receiver, 7, [(1, 4)])\n"
        "    while receiver.block(4) == before: pass\n"
        "    print(*(one.transports['scripted']._process._process.pid for one in (sender, receiver)), flush=True)\n"
        "    threading.Event().wait()\n"
    )
    worker = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert worker.stdout is not None
    with worker.stdout as output:
        pids = output.readline().split()
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    assert len(pids) == 2
    assert wait_for(lambda: not any(is_running(pid) for pid in pids))


def kill_carrier(machine: Machine) -> None:
    process = machine.transports["scripted"]._process  # type: ignore[attr-defined]
    process._process.kill()


def is_running(pid: str) -> bool:
    """Tell whether a process lives; one that nobody reaps does not."""
    try:
        return state_of(pid) != "Z"
    except OSError:
        return False
