"""With checksums no token is computed from a block that does not hold what it should, and only who reads it ends."""

from collections.abc import Sequence

import pytest
from tests.worker.role_cluster import Heard, RoleCluster, start_roles

from diptych.core.ids import BlockId
from diptych.core.messages import Failed, FailureKind
from diptych.engine.base import Logits, Row
from diptych.engine.modeled_engine import expected_tokens

LONG = [7 * i % 900 for i in range(200)]
OTHER = [11 * i % 900 for i in range(70)]
VOCAB_SIZE = 1000


def until_heard(cluster: RoleCluster, heard: Heard, num_tokens: int) -> None:
    """Go on until so many tokens have been heard of."""
    for _ in range(1000):
        if len(heard.tokens) >= num_tokens:
            return
        cluster.deliver_all()
        for name in list(cluster.workers):
            cluster.step(name)
    pytest.fail("no answer")


def blocks_of(cluster: RoleCluster, heard: Heard, worker: str = "decode-0") -> list[BlockId]:
    (sequence,) = cluster.workers[worker].decode.roster.find(heard.request.request_id)
    return list(sequence.block_table)


def damage(cluster: RoleCluster, block_id: BlockId, byte: int = 100) -> None:
    cluster.bytes_of(block_id)[byte] ^= 1


def assert_failed(heard: Heard, text: str) -> None:
    """It has got tokens of its own prompt alone, and then an error."""
    end = heard.choices[0].end
    assert isinstance(end, Failed), end
    assert end.kind is FailureKind.ERROR
    assert text in end.message
    right = expected_tokens(heard.request.prompt_token_ids, len(heard.tokens), VOCAB_SIZE)
    assert [heard.tokens[index] for index in range(len(heard.tokens))] == right


def assert_right(heard: Heard) -> None:
    assert heard.answer == expected_tokens(heard.request.prompt_token_ids, len(heard.answer), VOCAB_SIZE)


def num_found(cluster: RoleCluster) -> dict[str, int]:
    found = {name: worker.memory.num_damaged_blocks for name, worker in cluster.workers.items()}
    return {name: number for name, number in found.items() if number}


@pytest.mark.parametrize("place", [0, 1, -1])
def test_an_answer_ends_at_the_step_that_would_read_a_damaged_block(place: int) -> None:
    cluster = start_roles()
    victim, bystander = cluster.submit(LONG[:70], 60), cluster.submit(OTHER, 60)
    until_heard(cluster, victim, 20)
    num_known = len(victim.tokens)
    damage(cluster, blocks_of(cluster, victim)[place])
    cluster.run()

    assert_failed(victim, "does not hold what was written there under epoch")
    assert len(victim.tokens) == num_known
    assert_right(bystander)
    assert num_found(cluster) == {"decode-0": 1}
    again = cluster.submit(LONG[:70], 60)
    cluster.run()
    assert_right(again)
    cluster.check_idle()


def test_all_who_share_a_damaged_prefix_end_and_nobody_else_finds_it() -> None:
    cluster = start_roles()
    sharers = [cluster.submit([*LONG[:64], 1, 5, 6], 60)]
    until_heard(cluster, sharers[0], 3)
    sharers.append(cluster.submit([*LONG[:64], 2, 5, 6], 60))
    bystander = cluster.submit(OTHER, 40)
    for heard in (*sharers, bystander):
        until_heard(cluster, heard, 3)
    (shared, *_), (also_shared, *_) = (blocks_of(cluster, heard) for heard in sharers)
    assert shared == also_shared, "the second one found the first one's block"
    damage(cluster, shared)
    cluster.run()

    for heard in sharers:
        assert_failed(heard, f"KV block {shared} ")
    assert_right(bystander)
    late = cluster.submit([*LONG[:64], 9, 9, 9], 5)
    cluster.run()
    assert_right(late)
    assert late.finished.num_cached_tokens == 0
    cluster.check_idle()


def test_what_a_prefill_worker_finds_its_owner_finds_too() -> None:
    cluster = start_roles()
    first = cluster.submit(LONG[:64], 5)
    until_heard(cluster, first, 1)
    block_id = blocks_of(cluster, first)[0]
    cluster.run()
    damage(cluster, block_id)
    victim, bystander = cluster.submit(LONG, 5), cluster.submit(OTHER, 5)
    cluster.run()

    assert_failed(victim, f"KV block {block_id} ")
    assert_right(bystander)
    assert num_found(cluster) == {"prefill-0": 1, "decode-0": 1}
    cluster.check_idle()


def test_a_worker_with_both_roles_tells_them_apart() -> None:
    cluster = start_roles(is_adaptive=True)
    granted = cluster.submit(LONG, 30)
    own = cluster.submit(OTHER, 60, to="prefill-0", prefill=None)
    until_heard(cluster, own, 5)
    damage(cluster, blocks_of(cluster, own, "prefill-0")[0])
    cluster.run()

    assert_failed(own, "does not hold")
    assert_right(granted)
    cluster.check_idle()


def test_a_block_that_is_given_away_under_anothers_feet_is_found() -> None:
    cluster = start_roles()
    victim, thief = cluster.submit(LONG[:70], 60), cluster.submit(OTHER, 60)
    until_heard(cluster, victim, 5)
    until_heard(cluster, thief, 5)
    block_id = blocks_of(cluster, victim)[1]
    # As if the allocator had given it out twice: the thief writes there under its own epoch, as it should.
    (sequence,) = cluster.workers["decode-0"].decode.roster.find(thief.request.request_id)
    cluster.header.reserve([block_id], sequence.epoch)
    cluster.bytes_of(block_id)[:] = bytes(256)
    cluster.workers["decode-0"].memory.vouch_for([block_id], sequence.epoch)
    cluster.run()

    assert_failed(victim, f"is reserved under epoch {sequence.epoch} now")
    assert_right(thief)


def test_a_cached_block_that_is_given_away_is_not_trusted_by_its_name() -> None:
    cluster = start_roles()
    first = cluster.submit(LONG[:70], 5)
    until_heard(cluster, first, 1)
    block_id = blocks_of(cluster, first)[0]
    cluster.run()
    cluster.header.reserve([block_id], 2**50)
    cluster.workers["decode-0"].memory.vouch_for([block_id], 2**50)
    victim = cluster.submit(LONG[:90], 5)
    cluster.run()

    assert_failed(victim, f"KV block {block_id} was written under epoch")


@pytest.mark.parametrize("place", [0, 1, -1])
def test_a_dead_workers_damaged_block_is_not_adopted(place: int) -> None:
    cluster = start_roles(num_decode=2)
    heard = cluster.submit(LONG[:70], 60)
    until_heard(cluster, heard, 30)
    block_id = blocks_of(cluster, heard)[place]
    cluster.kill("decode-0")
    damage(cluster, block_id)
    cluster.migrate(heard, "decode-0", "decode-1", prefill="prefill-0")
    cluster.run()

    assert_right(heard)
    # A block that was not full may have been torn by the dying step: it is computed again, and nobody is blamed.
    assert num_found(cluster) == ({} if place == -1 else {"decode-1": 1})


def test_a_successor_does_not_trust_a_damaged_block_of_its_cache() -> None:
    cluster = start_roles()
    first = cluster.submit(LONG[:70], 5)
    until_heard(cluster, first, 1)
    block_id = blocks_of(cluster, first)[0]
    cluster.run()
    cluster.kill("decode-0")
    damage(cluster, block_id)
    cluster.revive("decode-0")
    victim = cluster.submit(LONG[:90], 5)
    cluster.run()
    assert_failed(victim, f"KV block {block_id} does not hold")

    cluster.kill("decode-0")
    cluster.revive("decode-0")
    late = cluster.submit(LONG[:90], 5)
    cluster.run()
    assert_right(late)
    assert late.finished.num_cached_tokens == 0, "the next successor does not find it either"


def test_damage_before_a_fork_is_not_copied_as_if_it_were_right() -> None:
    cluster = start_roles()
    heard = cluster.submit(LONG[:70], 30, num_choices=2)
    cluster.deliver_all()
    while ("prefill-0", "decode-0") not in cluster.letters.waiting():
        cluster.step("prefill-0")
    tail = blocks_of(cluster, heard)[2]
    damage(cluster, tail)
    cluster.run()

    assert_failed(heard, "does not hold")
    cluster.check_idle()


def test_a_reader_that_leaves_off_in_the_middle_of_a_block_damages_nothing() -> None:
    """After a migration a prompt is read on from the middle of a block, and its reader dies having written there."""
    cluster = start_roles(num_prefill=2, num_decode=2, chunk_tokens=48)
    heard = cluster.submit(LONG, 10, to="decode-0", prefill=None)
    cluster.deliver_all()
    cluster.step("decode-0")
    cluster.kill("decode-0")
    cluster.migrate(heard, "decode-0", "decode-1", prefill="prefill-0")
    cluster.deliver_all()
    assert cluster.begin("prefill-0")
    (part,) = cluster.workers["prefill-0"].parts or []
    assert part.row.num_past_tokens % 32, "it goes on in the middle of a block"
    cluster.bytes_of(part.row.block_table[part.row.num_past_tokens // 32])[-8:] = b"half-way"
    cluster.kill("prefill-0")
    cluster.run()

    assert_right(heard)
    assert num_found(cluster) == {}


def test_without_checksums_nothing_is_claimed() -> None:
    cluster = start_roles(has_kv_checksums=False)
    first = cluster.submit(LONG[:70], 5)
    until_heard(cluster, first, 1)
    block_id = blocks_of(cluster, first)[0]
    cluster.run()
    damage(cluster, block_id, byte=31 * 8)
    victim = cluster.submit(LONG[:90], 5)
    cluster.run()

    assert victim.answer != expected_tokens(LONG[:90], 5, VOCAB_SIZE), "the damage is real"
    assert num_found(cluster) == {}


def test_what_is_damaged_during_a_step_is_found_before_its_token_is_told() -> None:
    cluster = start_roles()
    victim, bystander = cluster.submit(LONG[:70], 60), cluster.submit(OTHER, 60)
    until_heard(cluster, victim, 20)
    until_heard(cluster, bystander, 20)
    worker = cluster.workers["decode-0"]
    block_id = blocks_of(cluster, victim)[0]
    compute = worker.engine.step

    def compute_disturbed(rows: Sequence[Row]) -> Logits:
        damage(cluster, block_id, byte=31 * 8)
        worker.engine.step = compute  # type: ignore[method-assign]
        return compute(rows)

    worker.engine.step = compute_disturbed  # type: ignore[method-assign]
    cluster.run()

    assert_failed(victim, f"KV block {block_id} does not hold")
    assert_right(bystander)
    cluster.check_idle()
