"""Peers that are killed or stand still while blocks move: the other end lets go of everything, in time."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tests.transfer.machines import Machine, outcome, wait_for
from tests.transfer.peer_process import EPOCH, NUM_BLOCKS

from diptych.transfer import tcp

WAYS = ["tcp", "mooncake", "nixl"]


@pytest.fixture(autouse=True)
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp, "IO_TIMEOUT_S", 0.5)


@contextmanager
def peer(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start a peer; return it with its first word."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.transfer.peer_process", *arguments], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


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
        owner.grants.close(EPOCH)
        assert wait_for(lambda: owner.grants.is_quiet(EPOCH)), "what was moving has ended"
        after = [owner.block(number) for number in range(NUM_BLOCKS)]
        time.sleep(0.2)
        assert after == [owner.block(number) for number in range(NUM_BLOCKS)], "nothing comes late"


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_sender_that_stands_still_is_left_alone(way: str) -> None:
    """With a library that reads from it, its blocks wait until it goes on or is dead: nobody gets them."""
    with Machine("owner", NUM_BLOCKS, ways=[way]) as owner:
        owner.grants.open(EPOCH, ("sender", 1), range(NUM_BLOCKS), [])
        before = owner.block(0)
        with peer("send", way, owner.exchange.receiver.endpoint) as (sender, _):
            assert wait_for(lambda: owner.block(0) != before)
            os.kill(sender.pid, signal.SIGSTOP)
            owner.grants.close(EPOCH)
            if way == "tcp":
                assert wait_for(lambda: owner.grants.is_quiet(EPOCH), 5.0), "nothing is waited for without end"
            sender.kill()
            sender.wait()
        assert wait_for(lambda: owner.grants.is_quiet(EPOCH))


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
        os.kill(owner.pid, signum)
        assert outcome(link.push(EPOCH, sender.all_pairs())) is not None, "within the patience of the test"
