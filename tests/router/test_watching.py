"""What the router tells of requests that have not ended."""

from typing import TYPE_CHECKING

from diptych.core.events import UNFINISHED, Lifecycle
from diptych.core.ids import RequestId, WorkerId
from diptych.core.messages import Begun, Tokens

if TYPE_CHECKING:
    from tests.router.conftest import Cluster


def begun(cluster: "Cluster", worker: str, name: str, at_s: float, attempt: int = 0) -> None:
    told = Begun(request_id=RequestId(name), attempt=attempt, prefill_started_s=at_s)
    cluster.router.on_message(Tokens(worker_id=WorkerId(worker), incarnation=1, begun=[told]))


def test_a_request_is_seen_in_each_of_its_phases(cluster: "Cluster") -> None:
    async def scenario() -> None:
        answer = await cluster.start(cluster.request())
        (waiting,) = cluster.router.unfinished_requests(9)
        assert (waiting.outcome, waiting.prefill_worker, waiting.decode_worker) == (UNFINISHED, "prefill-0", "decode-0")
        assert set(waiting.timeline) == {Lifecycle.ARRIVED, Lifecycle.ROUTED}
        begun(cluster, "prefill-0", "r0", 1000.25, attempt=1)  # not its attempt
        begun(cluster, "prefill-0", "nobody", 1000.25)
        cluster.advance(0.5)
        begun(cluster, "prefill-0", "r0", 1000.25)
        begun(cluster, "prefill-0", "r0", 1000.3)  # the first one counts
        (reading,) = cluster.router.unfinished_requests(9)
        assert reading.timeline[Lifecycle.PREFILL_STARTED] == 1000.25
        cluster.tokens("prefill-0", ("r0", 0))
        (handed_over,) = cluster.router.unfinished_requests(9)
        assert handed_over.timeline[Lifecycle.FIRST_TOKEN] == 1000.5
        assert Lifecycle.JOINED not in handed_over.timeline
        cluster.advance(0.25)
        cluster.tokens("decode-0", ("r0", 1))
        (writing,) = cluster.router.unfinished_requests(9)
        assert writing.timeline[Lifecycle.JOINED] == 1000.75
        assert (writing.num_output_tokens, writing.num_cached_tokens) == (2, 4)
        cluster.finished("decode-0", "r0", 2)
        await answer

    cluster.run(scenario())
    assert cluster.router.unfinished_requests(9) == []
    assert cluster.router.status().num_ended == 1


def test_those_that_came_first_are_shown(cluster: "Cluster") -> None:
    async def scenario() -> None:
        answers = [await cluster.start(cluster.request(f"r{number}")) for number in range(3)]
        assert [record.request_id for record in cluster.router.unfinished_requests(2)] == ["r0", "r1"]
        for answer in answers:
            answer.cancel()
        await cluster.let_run()

    cluster.run(scenario())
