"""Routers that share workers tell each other what they have placed, and none decides as if it were alone."""

import asyncio
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.core.clock import VirtualClock
from diptych.core.errors import OverloadedError
from diptych.core.ids import RouterId, WorkerId
from diptych.core.messages import FrontendGone, PeerAddress, PlacedLoads, PlacedLoadsWanted
from diptych.policy.pairing import WorkerLoad
from diptych.router.drains import SETTLE_S
from diptych.router.fellows import ASK_INTERVAL_S

if TYPE_CHECKING:
    from tests.router.conftest import Cluster

WORKERS = ("prefill-0", "decode-0", "decode-1")


class RecordingStaff:
    """Remembers who was to be ended."""

    def __init__(self) -> None:
        self.retired: list[tuple[str, int]] = []

    def retire(self, address: PeerAddress, will_return: bool) -> None:
        self.retired.append((address.worker_id, address.incarnation))

    def revive(self, worker_id: WorkerId) -> None:
        raise AssertionError(f"nobody starts {worker_id}")


class Routers:
    """Two routers over the same scripted workers. Their letters to each other are delivered, or lost, by the test."""

    def __init__(self, make_cluster: "Callable[..., Cluster]", **settings: float) -> None:
        self.clock = VirtualClock(1000.0)
        self.staffs = [RecordingStaff(), RecordingStaff()]
        self._make_cluster = make_cluster
        self._settings = settings
        self.one, self.other = self._make(0, 1), self._make(1, 1)
        for worker in WORKERS:
            self.heartbeat(worker)

    def _make(self, number: int, life: int) -> "Cluster":
        return self._make_cluster(
            clock=self.clock,
            staff=self.staffs[number],
            fellows={RouterId(1 - number): f"ipc://router-{1 - number}"},
            router=RouterId(number),
            frontend=life,
            routing_seed=number,
            **self._settings,
        )

    @property
    def both(self) -> "list[Cluster]":
        return [self.one, self.other]

    def heartbeat(self, worker: str, incarnation: int = 1, **counts: Any) -> None:
        for cluster in self.both:
            cluster.heartbeat(worker, incarnation, **counts)

    def replace_other(self, life: int) -> None:
        """Let another frontend take the place of the second one; it knows nobody yet."""
        self.other = self._make(1, life)

    def take_letters(self, number: int) -> list[PlacedLoads | PlacedLoadsWanted]:
        """Return what one router has to tell the other; it is not delivered."""
        cluster, to = self.both[number], f"ipc://router-{1 - number}"
        cluster.router._fellows.tell()
        letters = [
            message
            for endpoint, message in cluster.outbox.sent
            if endpoint == to and isinstance(message, PlacedLoads | PlacedLoadsWanted)
        ]
        cluster.outbox.sent = [sent for sent in cluster.outbox.sent if sent[0] != to]
        return letters

    def exchange(self, num_rounds: int = 1) -> None:
        """Deliver what the routers tell each other, and their answers."""
        for _ in range(num_rounds):
            for number in (0, 1):
                for letter in self.take_letters(number):
                    self.both[1 - number].router.on_message(letter)

    def advance(self, duration_s: float) -> None:
        self.clock.sleep(duration_s)
        for cluster in self.both:
            cluster.router.sweep()

    def loads(self, number: int) -> list[WorkerLoad]:
        """Return what a router's policies see."""
        loads = self.both[number].router._registry.worker_loads(4)
        return sorted(loads, key=lambda load: load.worker_id)


@pytest.fixture
def routers(make_cluster: "Callable[..., Cluster]") -> Routers:
    return Routers(make_cluster)


def counts(load: WorkerLoad) -> tuple[int, ...]:
    return (load.num_used_blocks, load.num_answers, load.num_unread, load.num_context_tokens, load.num_queued_tokens)


async def cancel(*answers: "asyncio.Task[object]") -> None:
    for answer in answers:
        answer.cancel()
    await asyncio.gather(*answers, return_exceptions=True)


def test_a_burst_through_one_is_seen_by_the_others_next_placement(routers: Routers) -> None:
    async def scenario() -> None:
        answers = []
        for number in range(6):  # each router alone would begin with decode-0
            answers.append(await routers.both[number % 2].start(routers.one.request(f"r{number}")))
            routers.exchange()
        owners = [worker for cluster in routers.both for worker, *_ in cluster.submits()]
        assert sorted(owners) == ["decode-0"] * 3 + ["decode-1"] * 3
        assert [worker for worker, *_ in routers.other.submits()] == ["decode-1"] * 3
        assert routers.loads(0) == routers.loads(1)
        assert routers.other.router.status().num_elsewhere == 3
        await cancel(*answers)

    routers.one.run(scenario())


def test_without_their_letters_both_would_take_the_same_worker(routers: Routers) -> None:
    async def scenario() -> None:
        answers = [await cluster.start(cluster.request(f"r{n}")) for n, cluster in enumerate(routers.both)]
        assert [worker for cluster in routers.both for worker, *_ in cluster.submits()] == ["decode-0"] * 2
        await cancel(*answers)

    routers.one.run(scenario())


def test_a_request_weighs_the_same_in_both_ledgers_until_its_end(routers: Routers) -> None:
    async def scenario() -> None:
        one = routers.one
        answer = await one.start(one.request(num_prompt_tokens=10))
        steps: list[Callable[[], None]] = [
            lambda: None,
            lambda: one.tokens("prefill-0", ("r0", 0)),
            lambda: one.tokens("decode-0", ("r0", 1), ("r0", 2)),  # another block
        ]
        for step in steps:
            step()
            assert routers.loads(0) != routers.loads(1)
            routers.exchange()
            assert routers.loads(0) == routers.loads(1)
        assert any(counts(load) != (0,) * 5 for load in routers.loads(1))
        one.finished("decode-0", "r0", 3)
        routers.exchange()
        assert all(counts(load) == (0,) * 5 for load in routers.loads(1))
        assert routers.other.router.status().num_elsewhere == 0
        await answer

    routers.one.run(scenario())


def test_what_a_heartbeat_says_too_is_not_counted_twice(routers: Routers) -> None:
    async def scenario() -> None:
        answer = await routers.one.start(routers.one.request(num_prompt_tokens=10))
        routers.exchange()
        before = routers.loads(1)
        routers.heartbeat("decode-0", num_answers=1, num_free_blocks=997)
        routers.heartbeat("prefill-0", queued_prefill_tokens=10, queued_prefill_pairs=55)
        assert [counts(load) for load in routers.loads(1)] == [counts(load) for load in before]
        await cancel(answer)

    routers.one.run(scenario())


def test_a_lost_letter_is_asked_for(routers: Routers) -> None:
    async def scenario() -> None:
        answers = [await routers.one.start(routers.one.request(f"r{number}")) for number in range(2)]
        assert routers.take_letters(0)  # lost
        answers.append(await routers.one.start(routers.one.request("r2")))
        routers.exchange()  # brings a number too high, and the question
        assert routers.loads(1) != routers.loads(0)
        routers.exchange(2)
        assert routers.loads(1) == routers.loads(0)
        await cancel(*answers)

    routers.one.run(scenario())


def test_who_is_behind_asks_once_in_a_while(routers: Routers) -> None:
    routers.exchange()
    routers.take_letters(0)
    for _ in range(3):
        for letter in routers.take_letters(0):
            routers.other.router.on_message(letter)
    assert len(routers.other.sent(PlacedLoadsWanted)) == 1
    routers.advance(ASK_INTERVAL_S)
    for letter in routers.take_letters(0):
        routers.other.router.on_message(letter)
    assert len(routers.other.sent(PlacedLoadsWanted)) == 2


def test_what_a_dead_frontend_had_placed_is_forgotten(routers: Routers) -> None:
    async def scenario() -> None:
        answer = await routers.one.start(routers.one.request())
        late = routers.take_letters(0)
        routers.one.router.on_message(PlacedLoadsWanted(router=RouterId(1)))
        for letter in routers.take_letters(0):
            routers.other.router.on_message(letter)
        assert any(counts(load) != (0,) * 5 for load in routers.loads(1))
        routers.other.router.on_message(FrontendGone(router=RouterId(0), incarnation=1))
        assert all(counts(load) == (0,) * 5 for load in routers.loads(1))
        for letter in late:
            routers.other.router.on_message(letter)
        assert all(counts(load) == (0,) * 5 for load in routers.loads(1)), "an echo"
        assert routers.other.router.status().num_elsewhere == 0
        await cancel(answer)

    routers.one.run(scenario())


def test_a_new_frontend_is_told_all_that_is_placed(routers: Routers) -> None:
    async def scenario() -> None:
        answers = [await routers.one.start(routers.one.request(f"r{number}")) for number in range(3)]
        routers.exchange()
        routers.one.router.on_message(FrontendGone(router=RouterId(1), incarnation=1))
        routers.replace_other(2)
        routers.exchange(3)  # it is told before it has heard of any worker
        for worker in WORKERS:
            routers.heartbeat(worker)
        assert routers.loads(1) == routers.loads(0)
        answers.append(await routers.other.start(routers.other.request("theirs")))
        assert routers.other.submits() == [("decode-1", 0, "prefill-0")]
        routers.exchange()
        assert routers.loads(1) == routers.loads(0)
        await cancel(*answers)

    routers.one.run(scenario())


def test_who_says_nothing_for_long_is_forgotten_and_heard_again(routers: Routers) -> None:
    async def scenario() -> None:
        answer = await routers.one.start(routers.one.request(within_s=1000.0))
        routers.exchange()
        routers.advance(11.0)
        for worker in WORKERS:
            routers.heartbeat(worker)
        assert all(counts(load) == (0,) * 5 for load in routers.loads(1))
        routers.exchange(2)
        assert routers.loads(1) == routers.loads(0)
        await cancel(answer)

    routers.one.run(scenario())


def test_a_worker_that_dies_takes_along_what_both_had_there(routers: Routers) -> None:
    async def scenario() -> None:
        answers = [await cluster.start(cluster.request(f"r{n}")) for n, cluster in enumerate(routers.both)]
        routers.exchange()
        for cluster in routers.both:
            cluster.exited("decode-0")
        routers.exchange()
        routers.heartbeat("decode-0", incarnation=2)
        assert routers.loads(1) == routers.loads(0)
        decode_0, decode_1, _ = routers.loads(0)
        assert counts(decode_0) == (0,) * 5
        assert decode_1.num_unread == 2
        await cancel(*answers)

    routers.one.run(scenario())


def test_no_more_requests_than_may_be_in_the_system(make_cluster: "Callable[..., Cluster]") -> None:
    async def scenario() -> None:
        routers = Routers(make_cluster, max_outstanding_requests=3)
        answers = [await routers.one.start(routers.one.request(f"r{number}")) for number in range(2)]
        routers.exchange()
        answers.append(await routers.other.start(routers.other.request("r2")))
        with pytest.raises(OverloadedError):
            routers.other.router.accept(routers.other.request("r3"))
        await cancel(*answers)

    asyncio.run(scenario())


# Drains


def test_a_drain_through_one_waits_for_what_the_other_has_there(routers: Routers) -> None:
    async def scenario() -> None:
        answer = await routers.other.start(routers.other.request("r0"))
        assert routers.other.submits()[0][0] == "decode-0"
        routers.one.router.drain_worker(WorkerId("decode-0"), 30.0, will_return=True)
        routers.exchange()
        routers.advance(SETTLE_S)
        assert [staff.retired for staff in routers.staffs] == [[], []]
        following = await routers.other.start(routers.other.request("r1"))
        assert routers.other.submits()[1][0] == "decode-1", "it has heard of the drain"
        assert routers.other.router.status().workers[WorkerId("decode-0")].status.state == "draining"
        routers.other.finished("decode-0", "r0", 0)
        routers.exchange()
        routers.advance(0.1)
        assert [staff.retired for staff in routers.staffs] == [[("decode-0", 1)]] * 2
        await cancel(answer, following)

    routers.one.run(scenario())


def test_an_empty_worker_goes_when_the_other_may_have_told_of_its_last_requests(routers: Routers) -> None:
    routers.one.router.drain_worker(WorkerId("decode-0"), 30.0, will_return=True)
    assert routers.staffs[0].retired == []
    routers.advance(SETTLE_S)
    assert routers.staffs[0].retired == [("decode-0", 1)]


def test_a_drain_outlives_the_router_that_was_asked(routers: Routers) -> None:
    routers.one.router.drain_worker(WorkerId("decode-0"), 30.0, will_return=False)
    routers.exchange()
    routers.other.router.on_message(FrontendGone(router=RouterId(0), incarnation=1))
    routers.advance(SETTLE_S)
    assert routers.staffs[1].retired == [("decode-0", 1)]
    routers.heartbeat("decode-0", incarnation=2)
    assert routers.other.router.status().workers[WorkerId("decode-0")].status.state == "ready"


# All together


@given(draw=st.randoms(use_true_random=False))
def test_whatever_is_lost_both_see_the_same_in_the_end(make_cluster: "Callable[..., Cluster]", draw: Random) -> None:
    async def scenario() -> None:
        routers = Routers(make_cluster)
        answers = [await act(routers, draw, number) for number in range(20)]
        routers.advance(ASK_INTERVAL_S)
        routers.exchange(3)
        assert routers.loads(0) == routers.loads(1)
        await cancel(*(answer for answer in answers if answer is not None))
        for cluster in routers.both:
            for worker, *_ in cluster.submits():
                for number in range(20):
                    cluster.aborted(worker, f"r{number}")
        routers.exchange(2)
        assert routers.loads(0) == routers.loads(1)
        assert all(counts(load) == (0,) * 5 for load in routers.loads(0))

    asyncio.run(scenario())


async def act(routers: Routers, draw: Random, number: int) -> "asyncio.Task[object] | None":
    """Let something happen to one of the routers, or to their letters."""
    which = draw.randrange(2)
    cluster, name = routers.both[which], f"r{draw.randrange(number + 1)}"
    match draw.randrange(6):
        case 0 | 1:
            num_tokens = draw.choice([3, 10, 40])
            return await cluster.start(cluster.request(f"r{number}", num_tokens, within_s=1000.0))
        case 2:
            cluster.tokens(draw.choice(WORKERS), (name, 0), (name, 1), (name, 2))
        case 3:
            cluster.finished(draw.choice(WORKERS), name, 3)
        case 4:
            routers.take_letters(which)
        case _:
            routers.advance(0.1)
            routers.exchange()
    return None
