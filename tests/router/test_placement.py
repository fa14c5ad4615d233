"""What a placement counts, from the submit to the end."""

import asyncio
from typing import TYPE_CHECKING

from diptych.core.ids import WorkerId
from diptych.router.placement import Placer
from diptych.router.prefix_index import PrefixIndex
from diptych.router.settings import RouterSettings

if TYPE_CHECKING:
    from tests.router.conftest import Cluster


def decode_counts(cluster: "Cluster", worker: str = "decode-0") -> tuple[int, int, int]:
    """Return (blocks, sequences, queued prefill blocks) of a worker as routing sees it."""
    (load,) = (load for load in cluster.router._registry.decode_loads(4) if load.worker_id == worker)
    return load.num_used_blocks, load.num_sequences, load.queued_prefill_blocks


def context_tokens(cluster: "Cluster", worker: str) -> int:
    """Return how many tokens a step of a worker reads, as choosing pairs sees it."""
    (load,) = (load for load in cluster.router._registry.worker_loads(4) if load.worker_id == worker)
    return load.num_context_tokens


def prefill_queue_tokens(cluster: "Cluster") -> int:
    return cluster.router._registry.prefill_loads()[0].queued_tokens


def test_counts_grow_with_the_answer_and_end_with_it(cluster: "Cluster") -> None:
    async def scenario() -> None:
        answer = await cluster.start(cluster.request(num_prompt_tokens=10))
        assert decode_counts(cluster) == (3, 1, 0)
        assert prefill_queue_tokens(cluster) == 10
        cluster.tokens("prefill-0", ("r0", 0))
        assert prefill_queue_tokens(cluster) == 0
        cluster.tokens("decode-0", ("r0", 1))
        assert decode_counts(cluster) == (3, 1, 0)  # 12 tokens fill 3 blocks
        cluster.tokens("decode-0", ("r0", 2))
        assert decode_counts(cluster) == (4, 1, 0)
        cluster.finished("decode-0", "r0", 3)
        assert decode_counts(cluster) == (0, 0, 0)
        await answer

    cluster.run(scenario())


def test_a_burst_is_shared_with_a_worker_that_has_just_come_back(cluster: "Cluster") -> None:
    """No heartbeat comes while it lasts: what counts is what was sent, and the newcomer looks empty all the time."""

    async def scenario() -> None:
        cluster.exited("decode-1")
        answers = [await cluster.start(cluster.request(f"early{number}")) for number in range(5)]
        assert {worker for worker, *_ in cluster.submits()} == {"decode-0"}
        cluster.heartbeat("decode-1", incarnation=2)
        answers += [await cluster.start(cluster.request(f"late{number}")) for number in range(20)]
        owners = [worker for worker, *_ in cluster.submits()]
        assert abs(owners.count("decode-0") - owners.count("decode-1")) <= 1, owners
        for answer in answers:
            answer.cancel()
        await asyncio.wait(answers)

    cluster.run(scenario())


def test_the_prompt_of_a_dead_prefill_worker_becomes_its_decode_workers_load(cluster: "Cluster") -> None:
    async def scenario() -> None:
        answer = await cluster.start(cluster.request(num_prompt_tokens=10))
        cluster.exited("prefill-0")
        assert decode_counts(cluster) == (3, 1, 3)
        cluster.tokens("decode-0", ("r0", 0))
        assert decode_counts(cluster) == (3, 1, 0)
        cluster.finished("decode-0", "r0", 1)
        await answer

    cluster.run(scenario())


def test_cached_blocks_are_neither_computed_nor_counted_again(cluster: "Cluster") -> None:
    async def scenario() -> None:
        cluster.caches("decode-1", 2)
        answer = await cluster.start(cluster.request(num_prompt_tokens=10))
        assert cluster.submits() == [("decode-1", 0, None)]
        assert decode_counts(cluster, "decode-1") == (1, 1, 1)
        assert context_tokens(cluster, "decode-1") == 10, "steps read the cached ones too"
        cluster.finished("decode-1", "r0", 0)
        assert context_tokens(cluster, "decode-1") == 0
        await answer

    cluster.run(scenario())


def test_excluded_workers_are_not_asked_and_a_full_hit_leaves_a_token(cluster: "Cluster") -> None:
    registry = cluster.router._registry
    placer = Placer(registry, PrefixIndex(), 4, RouterSettings(local_prefill_max_tokens=4))
    addresses = {name: registry.life(WorkerId(name)).address for name in ("decode-0", "decode-1")}
    placement = placer.try_place(8, [], {addresses["decode-0"]}, 64.0, 16)
    assert placement is not None
    assert placement.decode.worker_id == "decode-1"
    assert placer.try_place(8, [], set(addresses.values()), 64.0, 16) is None

    async def scenario() -> None:
        cluster.caches("decode-0", 2)
        answer = await cluster.start(cluster.request(num_prompt_tokens=8))
        assert decode_counts(cluster) == (0, 1, 1)
        answer.cancel()
        await asyncio.wait([answer])

    cluster.run(scenario())
