"""What a placement counts, from the submit to the end."""

import asyncio
from typing import TYPE_CHECKING

from diptych.core.ids import RequestId, WorkerId
from diptych.core.messages import CopyOrder, Loading, Tokens
from diptych.policy.pairing import WorkerLoad
from diptych.router.placement import Placer
from diptych.router.prefix_index import PrefixIndex
from diptych.router.settings import RouterSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.router.conftest import Cluster


def load_of(cluster: "Cluster", worker: str) -> WorkerLoad:
    (load,) = (load for load in cluster.router._registry.worker_loads(4) if load.worker_id == worker)
    return load


def decode_counts(cluster: "Cluster", worker: str = "decode-0") -> tuple[int, int, int]:
    """Return (blocks, sequences, queued prefill tokens) of a worker as routing sees it."""
    load = load_of(cluster, worker)
    return load.num_used_blocks, load.num_answers + load.num_unread, load.num_queued_tokens


def context_tokens(cluster: "Cluster", worker: str) -> int:
    """Return how many tokens a step of a worker reads, as choosing pairs sees it."""
    return load_of(cluster, worker).num_context_tokens


def prefill_queue_tokens(cluster: "Cluster") -> int:
    return load_of(cluster, "prefill-0").num_queued_tokens


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


def test_a_prompt_in_the_queue_weighs_by_what_its_tokens_attend_to(cluster: "Cluster") -> None:
    async def scenario() -> None:
        cluster.caches("decode-0", 2)
        answer = await cluster.start(cluster.request(num_prompt_tokens=40))
        load = load_of(cluster, "prefill-0")
        assert (load.num_queued_tokens, load.num_queued_pairs) == (32, 32 * 8 + 32 * 33 / 2)
        cluster.tokens("prefill-0", ("r0", 0))
        assert load_of(cluster, "prefill-0").num_queued_pairs == 0
        answer.cancel()
        await asyncio.wait([answer])

    cluster.run(scenario())


def test_what_is_loaded_from_below_waits_for_no_reader(cluster: "Cluster") -> None:
    def loading(num_tokens: int, attempt: int = 0) -> Tokens:
        found = Loading(request_id=RequestId("r0"), attempt=attempt, num_found_tokens=num_tokens)
        return Tokens(worker_id=WorkerId("decode-0"), incarnation=1, loading=[found])

    async def scenario() -> None:
        answer = await cluster.start(cluster.request(num_prompt_tokens=40))
        assert prefill_queue_tokens(cluster) == 40
        cluster.router.on_message(loading(32, attempt=7))
        assert prefill_queue_tokens(cluster) == 40, "an echo"
        cluster.router.on_message(loading(32))
        load = load_of(cluster, "prefill-0")
        assert (load.num_queued_tokens, load.num_queued_pairs) == (8, 8 * 32 + 8 * 9 / 2)
        cluster.router.on_message(loading(40))
        assert prefill_queue_tokens(cluster) == 1, "the last token is always computed"
        cluster.tokens("prefill-0", ("r0", 0))
        cluster.router.on_message(loading(32))
        assert prefill_queue_tokens(cluster) == 0, "it has been read"
        cluster.finished("decode-0", "r0", 1)
        await answer

    cluster.run(scenario())


def test_a_reader_elsewhere_has_to_read_what_it_has_not_cached_itself(make_cluster: "Callable[..., Cluster]") -> None:
    cluster = make_cluster()
    cluster.heartbeat("decode-0")
    cluster.heartbeat("prefill-0", node="rack1")

    async def scenario() -> None:
        cluster.caches("prefill-0", 8)
        answer = await cluster.start(cluster.request(num_prompt_tokens=40))
        assert cluster.submits() == [("decode-0", 0, "prefill-0")]
        load = load_of(cluster, "prefill-0")
        assert (load.num_queued_tokens, load.num_queued_pairs) == (8, 8 * 32 + 8 * 9 / 2)
        assert decode_counts(cluster) == (10, 1, 0), "of its owner all blocks are taken"
        found = Loading(request_id=RequestId("r0"), attempt=0, num_found_tokens=16)
        cluster.router.on_message(Tokens(worker_id=WorkerId("decode-0"), incarnation=1, loading=[found]))
        assert prefill_queue_tokens(cluster) == 8, "what the owner finds below is less"
        cluster.exited("prefill-0")
        assert decode_counts(cluster) == (10, 1, 40)
        answer.cancel()
        await asyncio.wait([answer])

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
        assert decode_counts(cluster) == (3, 1, 10)
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
        assert decode_counts(cluster, "decode-1") == (1, 1, 2)
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


def test_a_hot_prefix_is_to_be_copied_and_counts_as_read(make_cluster: "Callable[..., Cluster]") -> None:
    cluster = make_cluster(routing="kv-centric", slo_tpot_s=0.001)
    for worker in ("decode-0", "decode-1"):
        cluster.heartbeat(worker, copy_block_s=1e-6)

    async def scenario() -> None:
        cluster.caches("decode-0", 10)
        cluster.heartbeat("decode-0", num_answers=9, copy_block_s=1e-6)  # it has no time for one more
        answer = await cluster.start(cluster.request(num_prompt_tokens=42))
        assert cluster.submits() == [("decode-1", 0, None)]
        holder = cluster.router._registry.life(WorkerId("decode-0")).address
        assert cluster.last_submit().copy == CopyOrder(10, holder)
        assert decode_counts(cluster, "decode-1") == (11, 1, 2), "11 blocks are taken, 10 of them are not computed"
        cluster.exited("decode-0")
        assert decode_counts(cluster, "decode-1") == (11, 1, 2)
        cluster.finished("decode-1", "r0", 0)
        assert decode_counts(cluster, "decode-1") == (0, 0, 0)
        await answer

    cluster.run(scenario())


def test_turns_and_draws_go_on_from_request_to_request(make_cluster: "Callable[..., Cluster]") -> None:
    def owners(routing: str) -> list[str]:
        cluster = make_cluster(routing=routing)
        for number in range(4):
            cluster.heartbeat(f"mixed-{number}")

        async def scenario() -> None:
            answers = [await cluster.start(cluster.request(f"r{number}")) for number in range(8)]
            for answer in answers:
                answer.cancel()
            await asyncio.wait(answers)

        cluster.run(scenario())
        return [owner for owner, _, _ in cluster.submits()]

    assert owners("round-robin") == [f"mixed-{number % 4}" for number in range(8)]
    assert len(set(owners("random"))) > 1
    assert owners("random") == owners("random"), "from the same seed"
