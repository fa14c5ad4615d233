"""Peers that are killed or stand still while blocks move: the other end lets go of everything, in time."""

import os
import signal
import time

import pytest
from tests.transfer.machines import Machine, outcome, wait_for
from tests.transfer.peer_process import EPOCH, NUM_BLOCKS, peer

from diptych.core.errors import BenchError
from diptych.transfer import carrier, tcp
from harness.wire import Wire

WAYS = ["tcp", "mooncake", "nixl"]
QUIET_WITHIN_S = 6.0
"""Twice what a read or a socket is waited for here, and the time to end a process on a busy machine."""


@pytest.fixture(autouse=True)
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp, "IO_TIMEOUT_S", 0.5)
    monkeypatch.setattr(carrier, "READ_TIMEOUT_S", 1.0)
    monkeypatch.setenv("UCX_TLS", "tcp")  # as between machines: on one it copies from a process that stands still


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_sender_that_is_killed_leaves_nothing_behind(way: str) -> None:
    with Machine("owner", NUM_BLOCKS, ways=[way]) as owner:
        owner.grants.open(EPOCH, ("sender", 1), range(NUM_BLOCKS), [])
        before = owner.block(0)
        with peer("send", way, owner.exchange.receiver.endpoint) as (sender, word):
            assert word == "ready"
            assert wait_for(lambda: owner.block(0) != before), "blocks arrive"
            sender.kill()
            sender.wait()
        check_that_nothing_is_held(owner)
        check_that_nothing_comes(owner)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_sender_that_stands_still_holds_no_block_for_long(way: str) -> None:
    """Nothing tells the reader: no connection breaks. When it goes on, what it still has to send comes to nobody."""
    with Machine("owner", NUM_BLOCKS, ways=[way]) as owner:
        owner.grants.open(EPOCH, ("sender", 1), range(NUM_BLOCKS), [])
        before = owner.block(0)
        with peer("send", way, owner.exchange.receiver.endpoint) as (sender, _):
            assert wait_for(lambda: owner.block(0) != before), "blocks arrive"
            os.killpg(sender.pid, signal.SIGSTOP)
            check_that_nothing_is_held(owner)
            os.killpg(sender.pid, signal.SIGCONT)
            check_that_nothing_comes(owner)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_sender_whose_cable_is_cut_holds_no_block_for_long(way: str, capfd: pytest.CaptureFixture[str]) -> None:
    try:
        wire = Wire(delay_s=0.001, bytes_per_s=1.25e9)
    except BenchError as error:
        pytest.skip(f"no cable can be cut here: {error}; the test of one that stands still is nearest to it")
    with wire, Machine("owner", NUM_BLOCKS, ways=[way], host=wire.near) as owner:
        owner.grants.open(EPOCH, ("sender", 1), range(NUM_BLOCKS), [])
        before = owner.block(0)
        with peer("send", way, owner.exchange.receiver.endpoint, wire.far, prefix=wire.prefix) as (_, word):
            assert word == "ready"
            assert wait_for(lambda: owner.block(0) != before), "blocks arrive"
            assert "inline" not in capfd.readouterr().err, "they come by the library"
            wire.cut()
            check_that_nothing_is_held(owner)
            wire.heal()
            check_that_nothing_comes(owner)


def check_that_nothing_is_held(owner: Machine) -> None:
    owner.grants.close(EPOCH)
    assert wait_for(lambda: owner.grants.is_quiet(EPOCH), QUIET_WITHIN_S), "nothing is waited for without end"


def check_that_nothing_comes(owner: Machine) -> None:
    after = [owner.block(number) for number in range(NUM_BLOCKS)]
    time.sleep(0.5)
    assert after == [owner.block(number) for number in range(NUM_BLOCKS)], "nothing comes late"


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP])
def test_a_receiver_that_ends_or_stands_still_ends_the_push(
    way: str, signum: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diptych.transfer.link.ANSWER_TIMEOUT_S", 1.0)
    with peer("take", way) as (owner, endpoint), Machine("sender", NUM_BLOCKS, ways=[way]) as sender:
        link = sender.exchange.link(endpoint)
        assert outcome(link.push(EPOCH, sender.all_pairs())) is None
        os.killpg(owner.pid, signum)
        # A signal takes a moment to reach threads that run, and a push takes less.
        os.waitid(os.P_PID, owner.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        assert outcome(link.push(EPOCH, sender.all_pairs())) is not None, "within the patience of the test"
