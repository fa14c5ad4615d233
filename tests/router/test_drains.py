"""A worker that is drained gets nothing new, and goes when it has nothing left or no time."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from diptych.core.errors import NotFoundError, UnavailableError
from diptych.core.ids import WorkerId
from diptych.core.messages import PeerAddress

if TYPE_CHECKING:
    from tests.router.conftest import Cluster


class RecordingStaff:
    """Remembers what was asked for."""

    def __init__(self) -> None:
        self.retired: list[tuple[str, int, bool]] = []
        self.revived: list[str] = []

    def retire(self, address: PeerAddress, will_return: bool) -> None:
        self.retired.append((address.worker_id, address.incarnation, will_return))

    def revive(self, worker_id: WorkerId) -> None:
        self.revived.append(worker_id)


@pytest.fixture
def staff() -> RecordingStaff:
    return RecordingStaff()


@pytest.fixture
def staffed(make_cluster: "Callable[..., Cluster]", staff: RecordingStaff) -> "Cluster":
    """Return a cluster of two mixed workers."""
    cluster = make_cluster(staff=staff)
    for worker in ("mixed-0", "mixed-1"):
        cluster.heartbeat(worker)
    return cluster


def test_an_idle_worker_goes_at_once(staffed: "Cluster", staff: RecordingStaff) -> None:
    address = staffed.router.drain_worker(WorkerId("mixed-0"), 30.0, will_return=True)
    assert (address.worker_id, address.incarnation) == ("mixed-0", 1)
    assert staff.retired == [("mixed-0", 1, True)]


def test_a_busy_worker_goes_when_it_is_done(staffed: "Cluster", staff: RecordingStaff) -> None:
    async def scenario() -> None:
        answer = await staffed.start(staffed.request("r0"))
        staffed.router.drain_worker(WorkerId("mixed-0"), 30.0, will_return=False)
        assert staffed.router.status().workers["mixed-0"].status.state == "draining"  # type: ignore[index]
        following = await staffed.start(staffed.request("r1"))
        assert [worker for worker, *_ in staffed.submits()] == ["mixed-0", "mixed-1"]
        staffed.advance(1.0)
        assert staff.retired == []
        staffed.tokens("mixed-0", ("r0", 0))
        staffed.finished("mixed-0", "r0", 1)
        staffed.advance(0.1)
        assert staff.retired == [("mixed-0", 1, False)]
        staffed.finished("mixed-1", "r1", 0)
        await answer
        await following

    staffed.run(scenario())


def test_what_is_not_done_in_time_goes_on_elsewhere(staffed: "Cluster", staff: RecordingStaff) -> None:
    async def scenario() -> None:
        answer = await staffed.start(staffed.request("r0", within_s=100.0))
        staffed.tokens("mixed-0", ("r0", 0))
        staffed.router.drain_worker(WorkerId("mixed-0"), 5.0, will_return=False)
        staffed.advance(5.1)
        assert staff.retired == [("mixed-0", 1, False)]
        staffed.exited("mixed-0", exit_status=0)
        assert staffed.submits()[-1] == ("mixed-1", 1, None)
        staffed.finished("mixed-1", "r0", 1, attempt=1)
        await answer

    staffed.run(scenario())


def test_only_who_lives_is_drained_and_only_who_is_down_is_started(staffed: "Cluster", staff: RecordingStaff) -> None:
    router = staffed.router
    for act in (
        lambda: router.drain_worker(WorkerId("mixed-9"), 1.0, will_return=True),
        lambda: router.revive_worker(WorkerId("x")),
    ):
        with pytest.raises(NotFoundError, match="there is no worker"):
            act()
    with pytest.raises(UnavailableError, match="only one that is down"):
        router.revive_worker(WorkerId("mixed-0"))
    staffed.exited("mixed-0")
    with pytest.raises(UnavailableError, match="is down already"):
        router.drain_worker(WorkerId("mixed-0"), 1.0, will_return=True)
    router.revive_worker(WorkerId("mixed-0"))
    assert staff.revived == ["mixed-0"]
    staffed.heartbeat("mixed-0", incarnation=2)
    assert staffed.router.status().workers[WorkerId("mixed-0")].status.state == "ready"
