"""Blocks between two memories, by every way that there is: byte for byte, where they are granted, and nowhere else."""

import itertools
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from typing import NamedTuple

import pytest
from tests.transfer.machines import IN_PARTS, WHOLE, Machine, outcome, wait_for
from tests.transfer.scripted_transport import ScriptedTransport

from diptych.kv.layout import KVLayout

WAYS = ["tcp", "mooncake", "nixl"]
PAIRS = [(3, 17), (38, 2), (4, 16), (0, 29)]
"""Scattered as blocks really are."""
EPOCHS = itertools.count(100)


class Ends(NamedTuple):
    sender: Machine
    receiver: Machine


@pytest.fixture(params=WAYS, scope="module")
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    """Two machines for many tests: an epoch is used once."""
    with Machine("sender", 40, ways=[request.param]) as sender, Machine("owner", 30, ways=[request.param]) as receiver:
        yield Ends(sender, receiver)


@pytest.fixture
def epoch() -> int:
    return next(EPOCHS)


@pytest.fixture
def plain() -> Iterator[Ends]:
    with Machine("sender", 40) as sender, Machine("owner", 30) as receiver:
        yield Ends(sender, receiver)


def check_untouched(receiver: Machine, before: list[bytes], except_for: Collection[int] = ()) -> None:
    for block_id in set(range(receiver.num_blocks)).difference(except_for):
        assert receiver.block(block_id) == before[block_id], f"block {block_id} has changed"


def contents(machine: Machine) -> list[bytes]:
    return [machine.block(block_id) for block_id in range(machine.num_blocks)]


@pytest.mark.parametrize("layout", [WHOLE, IN_PARTS])
@pytest.mark.parametrize("way", WAYS)
def test_blocks_arrive_byte_for_byte_and_nothing_else_changes(way: str, layout: KVLayout) -> None:
    with Machine("sender", 40, layout, ways=[way]) as sender, Machine("owner", 30, layout, ways=[way]) as receiver:
        before = contents(receiver)
        receiver.grant(7, sender, [there for _, there in PAIRS] + [11])

        assert outcome(sender.push(receiver, 7, PAIRS)) is None

        for here, there in PAIRS:
            assert receiver.block(there) == sender.block(here)
        check_untouched(receiver, before, {there for _, there in PAIRS})
        receiver.grants.close(7)
        assert receiver.grants.is_quiet(7)


def test_many_pushes_in_order(ends: Ends, epoch: int) -> None:
    sender, receiver = ends
    receiver.grant(epoch, sender, range(30))
    pushes = [sender.push(receiver, epoch, [(number, number % 30)]) for number in range(40)]

    assert [outcome(push) for push in pushes] == [None] * 40
    assert [receiver.block(number) for number in range(10)] == [sender.block(number + 30) for number in range(10)]


def test_fetched_blocks_are_the_owners(ends: Ends, epoch: int) -> None:
    sender, receiver = ends
    receiver.grant(epoch, sender, [5], readable=[17, 2, 16, 29])

    assert outcome(sender.fetch(receiver, epoch, PAIRS)) is None
    assert [sender.block(here) for here, _ in PAIRS] == [receiver.block(there) for _, there in PAIRS]


def test_large_blocks() -> None:
    layout = KVLayout.of(WHOLE.regions[0].tensors * 30, 32)
    with Machine("sender", 12, layout) as sender, Machine("owner", 12, layout) as receiver:
        receiver.grant(1, sender, range(12))
        assert outcome(sender.push(receiver, 1, [(number, 11 - number) for number in range(12)])) is None
        assert contents(receiver) == list(reversed(contents(sender)))
        before = contents(receiver)
        # Their bytes are more than what is on the way at a time, and are let pass.
        refused = sender.push(receiver, 2, [(number, number) for number in range(12)])
        following = sender.push(receiver, 1, [(0, 0)])
        error = outcome(refused)
        assert error is not None and "nothing is granted" in error
        assert outcome(following) is None
        assert contents(receiver) == [sender.block(0), *before[1:]]


# What is not granted


@pytest.mark.parametrize(
    ("is_open", "pairs"),
    [
        (False, [(0, 4)]),
        (True, [(0, 6)]),  # another's block
        (True, [(0, 4), (1, 6)]),
        (True, [(0, 4), (1, 4)]),  # twice
        (True, [(0, 3)]),  # only to be read
        (True, [(0, 2**30)]),  # nobody's
    ],
)
def test_what_is_not_granted_is_refused_and_changes_nothing(
    ends: Ends, epoch: int, is_open: bool, pairs: list[tuple[int, int]]
) -> None:
    sender, receiver = ends
    before = contents(receiver)
    receiver.grant(epoch, sender, [4, 5], readable=[3])

    error = outcome(sender.push(receiver, epoch if is_open else 7, pairs))

    assert error is not None and "granted" in error
    check_untouched(receiver, before)
    assert outcome(sender.push(receiver, epoch, [(0, 5)])) is None, "the connection is as good as before"


def test_only_the_one_it_is_granted_to_may_fill_a_block(plain: Ends) -> None:
    sender, receiver = plain
    with Machine("stranger") as stranger:
        receiver.grant(7, sender, [4])
        before = contents(receiver)
        error = outcome(stranger.push(receiver, 7, [(0, 4)]))
        assert error is not None and "nothing is granted to stranger" in error
        check_untouched(receiver, before)


def test_what_may_not_be_read_is_not_sent(plain: Ends) -> None:
    sender, receiver = plain
    receiver.grant(7, sender, [4], readable=[3])
    before = contents(sender)
    error = outcome(sender.fetch(receiver, 7, [(0, 4)]))
    assert error is not None and "may be read" in error
    check_untouched(sender, before)


def test_a_closed_grant_lets_nothing_in(ends: Ends, epoch: int) -> None:
    sender, receiver = ends
    receiver.grant(epoch, sender, [4])
    receiver.grants.close(epoch)
    assert receiver.grants.is_quiet(epoch)
    before = contents(receiver)
    assert outcome(sender.push(receiver, epoch, [(0, 4)])) is not None
    check_untouched(receiver, before)


# What goes wrong


@pytest.fixture
def scripted() -> Iterator[tuple[Ends, ScriptedTransport]]:
    theirs, ours = ScriptedTransport(), ScriptedTransport()
    with ExitStack() as stack:
        sender = stack.enter_context(Machine("sender", transports={"scripted": theirs}, has_checksums=True))
        receiver = stack.enter_context(Machine("owner", transports={"scripted": ours}))
        theirs.own(sender.memory)
        ours.own(receiver.memory)
        receiver.grant(7, sender, range(10))
        yield Ends(sender, receiver), ours
        ours.may_read.set()


def test_what_a_transport_cannot_move_goes_inline(scripted: tuple[Ends, ScriptedTransport]) -> None:
    (sender, receiver), transport = scripted
    transport.is_broken = True
    assert outcome(sender.push(receiver, 7, [(1, 4)])) is None
    assert receiver.block(4) == sender.block(1)
    assert outcome(sender.push(receiver, 7, [(2, 5)])) is None
    assert transport.num_reads == 1, "it rests"


def test_blocks_that_have_changed_on_their_way_are_sent_again(scripted: tuple[Ends, ScriptedTransport]) -> None:
    (sender, receiver), transport = scripted
    transport.damages = True
    assert outcome(sender.push(receiver, 7, [(1, 4)])) is None
    assert receiver.block(4) == sender.block(1)


def test_blocks_are_not_quiet_while_a_transport_moves_them(scripted: tuple[Ends, ScriptedTransport]) -> None:
    (sender, receiver), transport = scripted
    transport.may_read.clear()
    push = sender.push(receiver, 7, [(1, 4)])
    assert transport.is_reading.wait(10)
    receiver.grants.close(7)

    assert not receiver.grants.is_quiet(7)
    push.cancel()
    assert outcome(push) is not None
    assert not receiver.grants.is_quiet(7), "its sender has given up, and it is moving all the same"
    transport.may_read.set()
    assert wait_for(lambda: receiver.grants.is_quiet(7))


def test_a_sender_that_comes_again_does_not_meet_what_it_left_behind(scripted: tuple[Ends, ScriptedTransport]) -> None:
    (sender, receiver), transport = scripted
    transport.may_read.clear()
    push = sender.push(receiver, 7, [(1, 4)])
    assert transport.is_reading.wait(10)
    push.cancel()
    assert outcome(push) is not None
    error = outcome(sender.push(receiver, 7, [(2, 4)]))
    assert error is not None and "something else is moving" in error


def test_a_cancelled_push_ends_at_once_and_the_next_goes_on(plain: Ends) -> None:
    sender, receiver = plain
    receiver.grant(1, sender, range(30))
    pushes = [sender.push(receiver, 1, [(block, block) for block in range(30)]) for _ in range(20)]
    for push in pushes[1:]:
        push.cancel()
    last = sender.push(receiver, 1, [(31, 3)])
    assert outcome(last) is None
    assert receiver.block(3) == sender.block(31)
    assert all(push.is_over for push in pushes)


def test_a_connection_that_breaks_is_made_anew(ends: Ends, epoch: int) -> None:
    sender, receiver = ends
    receiver.grant(epoch, sender, range(30))
    assert outcome(sender.push(receiver, epoch, [(1, 1)])) is None
    receiver.exchange.receiver.hang_up(sender.life)
    assert outcome(sender.push(receiver, epoch, [(2, 2)])) is None
    assert receiver.block(2) == sender.block(2)


def test_nobody_listens_any_more(plain: Ends) -> None:
    sender, receiver = plain
    receiver.grant(1, sender, range(30))
    assert outcome(sender.push(receiver, 1, [(1, 1)])) is None
    receiver.exchange.close()
    assert outcome(sender.push(receiver, 1, [(2, 2)])) is not None


def test_a_forgotten_link_ends_what_waits(plain: Ends) -> None:
    sender, receiver = plain
    receiver.grant(1, sender, range(30))
    pushes = [sender.push(receiver, 1, [(block, block) for block in range(30)]) for _ in range(50)]
    sender.exchange.forget(receiver.exchange.receiver.endpoint)
    assert [outcome(push) is None for push in pushes].count(False) > 0
    receiver.grants.close(1)
    assert wait_for(lambda: receiver.grants.is_quiet(1))
