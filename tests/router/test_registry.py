"""Who lives, who accepts, and what the snapshots say."""

import pytest

from diptych.core.clock import VirtualClock
from diptych.core.ids import RequestId, WorkerId
from diptych.core.messages import Heartbeat, PeerAddress, Role, WorkerState, WorkerStatus
from diptych.router.registry import WorkerRegistry

DECODE, PREFILL = WorkerId("decode-0"), WorkerId("prefill-0")


class Bench:
    """A registry on a clock that jumps."""

    def __init__(self) -> None:
        self.clock = VirtualClock(100.0)
        self.registry = WorkerRegistry(
            {DECODE: Role.DECODE, PREFILL: Role.PREFILL}, self.clock, heartbeat_timeout_s=10.0, costs={}
        )

    def beat(
        self, worker_id: WorkerId, incarnation: int = 1, state: WorkerState = WorkerState.READY, **counts: int
    ) -> WorkerId | None:
        """Return the worker of whose former life the heartbeat tells the end."""
        counts = {
            "num_running": 0,
            "num_free_blocks": 50,
            "queued_prefill_tokens": 0,
        } | counts
        status = WorkerStatus(
            state=state,
            pid=7,
            cores=[],
            engine="scripted",
            num_blocks=100,
            num_free_blocks=counts["num_free_blocks"],
            num_cached_blocks=30,
            num_running=counts["num_running"],
            num_waiting=1,
            num_answers=counts["num_running"] + 1,
            queued_prefill_tokens=counts["queued_prefill_tokens"],
            prefill_tokens_per_s=500.0,
            decode_step_s=0.0,
            memory_bytes=0,
            num_steps=0,
        )
        heartbeat = Heartbeat(
            role=Role(worker_id.split("-")[0]),
            address=PeerAddress(worker_id, f"ipc://{worker_id}", incarnation),
            status=status,
        )
        ended = self.registry.on_heartbeat(heartbeat)
        return None if ended is None else ended.worker_id

    def is_accepting(self, worker_id: WorkerId) -> bool:
        return self.registry.is_accepting(self.registry.life(worker_id))


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_only_ready_workers_that_are_heard_accept(bench: Bench) -> None:
    bench.beat(DECODE, state=WorkerState.STARTING)
    assert not bench.is_accepting(DECODE)
    bench.beat(DECODE)
    assert bench.is_accepting(DECODE)
    bench.clock.sleep(10.0)
    assert bench.is_accepting(DECODE)
    bench.clock.sleep(0.1)
    assert not bench.is_accepting(DECODE)
    assert not bench.registry.can_decode
    bench.beat(DECODE)
    assert bench.registry.can_decode
    bench.beat(DECODE, state=WorkerState.DRAINING)
    assert not bench.is_accepting(DECODE)


def test_a_life_that_is_over_never_comes_back(bench: Bench) -> None:
    bench.beat(DECODE)
    ended = bench.registry.on_exited(DECODE, 1)
    assert ended is not None
    assert ended.is_over
    assert bench.registry.on_exited(DECODE, 1) is None
    bench.beat(DECODE)
    assert not bench.registry.can_decode
    assert bench.registry.living() == []
    assert bench.beat(DECODE, incarnation=2) is None  # its end is known already
    assert bench.registry.can_decode


def test_a_new_life_tells_of_the_old_ones_end_and_echoes_are_ignored(bench: Bench) -> None:
    bench.beat(DECODE, incarnation=3)
    assert bench.beat(DECODE, incarnation=4) == DECODE
    assert bench.beat(DECODE, incarnation=3, state=WorkerState.DRAINING) is None
    assert bench.registry.on_exited(DECODE, 3) is None
    assert bench.registry.life(DECODE).address.incarnation == 4
    assert bench.is_accepting(DECODE)


def test_a_worker_may_die_before_its_first_heartbeat_arrives(bench: Bench) -> None:
    assert bench.registry.on_exited(DECODE, 0) is None
    bench.beat(DECODE, incarnation=0)
    assert not bench.registry.can_decode
    assert bench.registry.worker_infos()[DECODE].status.state is WorkerState.DEAD
    bench.beat(DECODE, incarnation=1)
    assert bench.registry.can_decode


def test_everyone_has_come_up_once_past_starting(bench: Bench) -> None:
    bench.beat(DECODE)
    bench.beat(PREFILL, state=WorkerState.STARTING)
    assert not bench.registry.has_everyone_come_up
    bench.beat(PREFILL)
    bench.registry.on_exited(PREFILL, 1)
    assert bench.registry.has_everyone_come_up


def test_workers_that_have_not_spoken_are_shown_as_starting(bench: Bench) -> None:
    bench.clock.sleep(3.0)
    bench.beat(PREFILL)
    infos = bench.registry.worker_infos()
    assert list(infos) == [DECODE, PREFILL]
    assert infos[DECODE].status.state is WorkerState.STARTING
    assert infos[DECODE].role is Role.DECODE
    assert infos[DECODE].heartbeat_age_s == 3.0
    assert infos[PREFILL].status.state is WorkerState.READY
    bench.registry.on_exited(PREFILL, 1)
    assert bench.registry.worker_infos()[PREFILL].status.state is WorkerState.DEAD


def test_snapshots_hold_what_was_sent_since_the_heartbeat(bench: Bench) -> None:
    bench.beat(DECODE, num_running=2)  # 100 - 50 - 30 = 20 blocks and 2 + 1 sequences of others
    bench.beat(PREFILL, queued_prefill_tokens=300)
    ledger = bench.registry.life(DECODE).ledger
    ledger.sequences.assign(RequestId("a"), 1)
    ledger.blocks.assign(RequestId("a"), 5)
    ledger.prefill_tokens.assign(RequestId("a"), 9)
    bench.registry.life(PREFILL).ledger.prefill_tokens.assign(RequestId("b"), 700)
    decode, prefill = bench.registry.worker_loads(block_size=4)
    assert (decode.num_used_blocks, decode.num_answers, decode.num_queued_tokens) == (25, 4, 9)
    assert (decode.num_blocks, decode.role, decode.is_accepting) == (100, Role.DECODE, True)
    assert (prefill.num_queued_tokens, prefill.role) == (1000, Role.PREFILL)
    bench.beat(DECODE, num_running=3, num_free_blocks=45)  # now the worker has seen ours
    decode, _ = bench.registry.worker_loads(block_size=4)
    assert (decode.num_used_blocks, decode.num_answers) == (25, 4)


def test_a_new_life_has_an_empty_ledger(bench: Bench) -> None:
    bench.beat(DECODE)
    bench.registry.life(DECODE).ledger.sequences.assign(RequestId("a"), 1)
    bench.beat(DECODE, incarnation=2)
    assert bench.registry.worker_infos()[DECODE].num_assigned == 0


def test_a_snapshot_is_never_older_than_what_is_known(bench: Bench) -> None:
    bench.beat(DECODE)
    life = bench.registry.life(DECODE)

    def seen() -> tuple[int, int, bool]:
        (load,) = bench.registry.worker_loads(block_size=4)
        return load.num_used_blocks, load.num_answers, load.is_accepting

    assert seen() == (20, 1, True)
    for field in ("context_tokens", "prefill_tokens", "unread"):
        before = list(bench.registry.worker_loads(block_size=4))
        getattr(life.ledger, field).assign(RequestId("a"), 1)
        assert list(bench.registry.worker_loads(block_size=4)) != before, field
    life.ledger.blocks.assign(RequestId("a"), 5)
    life.ledger.unread.release(RequestId("a"))
    assert seen() == (25, 1, True)
    life.ledger.blocks.grow(RequestId("a"), 1)
    assert seen() == (26, 1, True)
    life.ledger.sequences.assign(RequestId("a"), 2)
    assert seen() == (26, 3, True)
    life.ledger.release(RequestId("a"))
    assert seen() == (20, 1, True)
    bench.registry.set_draining(life, is_draining=True)
    assert seen() == (20, 1, False)
    bench.registry.set_draining(life, is_draining=False)
    assert seen() == (20, 1, True)
    bench.clock.sleep(11.0)
    assert seen() == (20, 1, False), "it is silent"
    bench.beat(DECODE, num_free_blocks=40, num_running=5)
    assert seen() == (30, 6, True)
