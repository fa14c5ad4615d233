"""What the router tells whoever watches it."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from diptych.core.errors import OverloadedError, RequestError, UnavailableError
from diptych.core.events import RequestRecord
from diptych.core.messages import FailureKind, Heartbeat

if TYPE_CHECKING:
    from tests.router.conftest import Cluster


class Notes:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.gaps_s: list[float | None] = []
        self.ended: list[RequestRecord] = []
        self.rejected: list[tuple[str, bool]] = []
        self.workers: list[str] = []

    def on_tokens(self, num_tokens: int, gap_s: float | None) -> None:
        assert num_tokens == 1
        self.gaps_s.append(gap_s)

    def on_ended(self, record: RequestRecord) -> None:
        self.ended.append(record)

    def on_rejected(self, error: RequestError, *, was_taken: bool = False) -> None:
        self.rejected.append((type(error).__name__, was_taken))

    def on_heartbeat(self, heartbeat: Heartbeat) -> None:
        self.workers.append(heartbeat.address.worker_id)


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def watched(make_cluster: "Callable[..., Cluster]", notes: Notes) -> "Cluster":
    cluster = make_cluster(observer=notes, max_outstanding_requests=1, max_migrations=0)
    cluster.heartbeat("decode-0")
    return cluster


def test_every_token_with_the_time_since_the_one_before_it(watched: "Cluster", notes: Notes) -> None:
    async def scenario() -> None:
        answer = await watched.start(watched.request(num_choices=2))
        watched.tokens("decode-0", ("r0", 0))
        watched.clock.sleep(0.5)
        watched.tokens("decode-0", ("r0", 0), choice=1)
        watched.clock.sleep(0.25)
        watched.tokens("decode-0", ("r0", 1))
        watched.tokens("decode-0", ("r0", 1))  # twice: it counts once
        for choice, num_tokens in ((0, 2), (1, 1)):
            watched.finished("decode-0", "r0", num_tokens, choice=choice)
        await answer

    watched.run(scenario())
    assert notes.gaps_s == [None, None, 0.75]
    assert [(record.num_output_tokens, record.num_choices) for record in notes.ended] == [(3, 2)]
    assert (notes.rejected, notes.workers) == ([], ["decode-0"])


def test_who_is_refused_and_who_fails(watched: "Cluster", notes: Notes) -> None:
    async def scenario() -> None:
        answer = await watched.start(watched.request())
        assert watched.router.status().num_unread == 1
        with pytest.raises(OverloadedError):
            await watched.ask(watched.request("r1"))
        watched.tokens("decode-0", ("r0", 0))
        assert watched.router.status().num_unread == 0
        watched.exited("decode-0")
        with pytest.raises(UnavailableError):
            await answer

    watched.run(scenario())
    assert notes.rejected == [("OverloadedError", False), ("UnavailableError", True)]
    assert [record.outcome for record in notes.ended] == ["failed"], "what was not taken has no record"


def test_who_leaves_is_not_rejected(watched: "Cluster", notes: Notes) -> None:
    async def scenario() -> None:
        async with watched.router.serve(watched.request()):
            pass
        watched.aborted("decode-0", "r0")

    watched.run(scenario())
    assert [record.outcome for record in notes.ended] == ["aborted"]
    assert notes.rejected == []


def test_a_workers_failure_is_told_once(watched: "Cluster", notes: Notes) -> None:
    async def scenario() -> None:
        answer = await watched.start(watched.request())
        watched.failed("decode-0", "r0", FailureKind.ERROR)
        with pytest.raises(RequestError):
            await answer

    watched.run(scenario())
    assert notes.rejected == [("InternalError", True)]
