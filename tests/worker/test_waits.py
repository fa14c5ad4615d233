"""What waits for another worker, or for its turn, does not wait for ever; nothing that was computed is lost by it."""

from collections.abc import Callable

import pytest
from tests.worker.role_cluster import Heard, RoleCluster, start_roles

from diptych.core.messages import Failed, FailureKind
from diptych.engine.modeled_engine import expected_tokens

VOCAB_SIZE = 1000
LONG = [7 * i % 900 for i in range(200)]
GRANT_TIMEOUT_S = 5.0


def finish(cluster: RoleCluster) -> None:
    cluster.run()
    cluster.check_answers()
    cluster.check_idle()


def greedy(heard: Heard, num_tokens: int = 16) -> list[int]:
    return expected_tokens(heard.request.prompt_token_ids, num_tokens, VOCAB_SIZE)


def granted(**changes: object) -> tuple[RoleCluster, Heard]:
    """Return a cluster whose decode worker has sent a grant that has not arrived."""
    cluster = start_roles(**changes)
    heard = cluster.submit(LONG)
    cluster.deliver("router", "decode-0")
    assert cluster.letters.queues["decode-0", "prefill-0"]
    return cluster, heard


# Grants that are lost


def lose_grant(cluster: RoleCluster) -> None:
    cluster.letters.queues["decode-0", "prefill-0"].clear()


def lose_filled(cluster: RoleCluster) -> None:
    cluster.deliver("decode-0", "prefill-0")
    while not cluster.letters.queues.get(("prefill-0", "decode-0")):
        cluster.step("prefill-0")
    cluster.letters.queues["prefill-0", "decode-0"].clear()


def lose_answer_to_revoke(cluster: RoleCluster) -> None:
    cluster.deliver("decode-0", "prefill-0")
    cluster.abort(cluster.heard[next(iter(cluster.heard))])
    cluster.deliver("router", "decode-0")
    cluster.deliver("decode-0", "prefill-0")
    assert cluster.workers["decode-0"].decode.blocks.cache.num_available_blocks < cluster.settings.num_blocks
    cluster.letters.queues["prefill-0", "decode-0"].clear()


@pytest.mark.parametrize("lose", [lose_grant, lose_filled, lose_answer_to_revoke])
def test_a_lost_letter_costs_the_grant_timeout_and_no_token(lose: Callable[[RoleCluster], None]) -> None:
    cluster, heard = granted()
    lose(cluster)
    cluster.run()
    assert not heard.ends or heard.choices[0].is_abort_asked, "the test has lost nothing"
    cluster.clock.sleep(GRANT_TIMEOUT_S)
    finish(cluster)
    assert heard.choices[0].is_abort_asked or heard.answer == greedy(heard)
    assert not cluster.unheard


@pytest.mark.parametrize("phase", ["queued", "in step"])
def test_a_grant_that_its_writer_has_is_left_with_it(phase: str) -> None:
    cluster = start_roles()
    if phase == "queued":
        cluster.submit([1, *LONG])
    heard = cluster.submit(LONG)
    cluster.deliver_all()
    assert cluster.begin("prefill-0")
    (sequence,) = cluster.workers["decode-0"].decode.roster.find(heard.request.request_id)
    for _ in range(4):
        cluster.clock.sleep(GRANT_TIMEOUT_S)
        cluster.begin("decode-0")
        assert cluster.letters.queues["decode-0", "prefill-0"], "nobody has asked"
        cluster.deliver_all()
    assert not cluster.unheard
    assert cluster.workers["decode-0"].decode.roster.grants.get(sequence.epoch) is not None
    finish(cluster)
    assert heard.answer == greedy(heard)


def test_a_writer_that_does_not_answer_is_reported_and_its_blocks_wait_for_its_death() -> None:
    cluster, heard = granted(num_blocks=7)
    cluster.deliver("decode-0", "prefill-0")
    assert cluster.begin("prefill-0")
    other = cluster.submit(LONG[:100], prefill=None)  # for which there are no blocks
    cluster.deliver("router", "decode-0")
    for _ in range(2):
        assert not cluster.unheard
        cluster.clock.sleep(GRANT_TIMEOUT_S)
        cluster.begin("decode-0")
        lose_grant(cluster)  # what asks for it
    assert cluster.unheard == {cluster.address("prefill-0")}
    assert cluster.workers["decode-0"].decode.load().num_waiting == 1, "the blocks are not safe yet"
    cluster.kill("prefill-0", has_written=True)
    finish(cluster)
    assert (heard.answer, other.answer) == (greedy(heard), greedy(other))


# Turns that do not come


def in_decode_queue(cluster: RoleCluster) -> Heard:
    cluster.submit(LONG[:40], 200, prefill=None)
    heard = cluster.submit(LONG[:100])
    cluster.deliver_all()
    cluster.step("decode-0")
    assert cluster.workers["decode-0"].decode.load().num_waiting == 1
    return heard


def in_prefill_queue(cluster: RoleCluster) -> Heard:
    cluster.submit([1, 2, *LONG])
    heard = cluster.submit(LONG[:100])
    cluster.deliver_all()
    cluster.step("prefill-0")
    assert cluster.workers["prefill-0"].role.load().num_waiting == 2
    return heard


def in_own_queue(cluster: RoleCluster) -> Heard:
    cluster.submit([1, 2, *LONG], prefill=None)
    heard = cluster.submit(LONG[:100], prefill=None)
    cluster.deliver_all()
    cluster.step("decode-0")
    return heard


@pytest.mark.parametrize(("place", "max_num_seqs"), [(in_decode_queue, 1), (in_prefill_queue, 8), (in_own_queue, 8)])
def test_a_request_whose_turn_does_not_come_is_told_so(
    place: Callable[[RoleCluster], Heard], max_num_seqs: int
) -> None:
    cluster = start_roles(queue_timeout_s=20.0, max_num_seqs=max_num_seqs)
    heard = place(cluster)
    cluster.clock.sleep(20.1)
    finish(cluster)
    (end,) = heard.ends
    assert isinstance(end, Failed)
    assert end.kind is FailureKind.QUEUED
    (other,) = (one for one in cluster.heard.values() if one is not heard)
    assert other.answer == greedy(other, other.request.sampling.max_tokens), "its turn had come"


@pytest.mark.parametrize("place", ["prefill-0", "decode-0", "moved"])
def test_a_request_that_has_begun_has_waited_for_its_turn(place: str) -> None:
    cluster = start_roles(queue_timeout_s=20.0, num_decode=2)
    heard = cluster.submit(LONG, prefill=None if place == "decode-0" else "prefill-0")
    cluster.deliver_all()
    if place == "moved":
        cluster.kill("decode-0")
        cluster.migrate(heard, "decode-0", "decode-1", prefill="prefill-0")
    else:
        cluster.step(place)
    cluster.clock.sleep(20.1)
    finish(cluster)
    assert heard.answer == greedy(heard)


# What was read is not read again


@pytest.mark.parametrize("num_chunks", [1, 2, 3])
@pytest.mark.parametrize("has_written", [False, True])
def test_the_owner_reads_on_where_its_prefill_worker_has_died(num_chunks: int, has_written: bool) -> None:
    cluster, heard = granted(chunk_tokens=48, decode_chunk_tokens=48)
    cluster.deliver("decode-0", "prefill-0")
    for _ in range(num_chunks):
        cluster.step("prefill-0")
    cluster.begin("prefill-0")
    cluster.kill("prefill-0", has_written=has_written)
    finish(cluster)
    assert heard.answer == greedy(heard)
    num_chunks_left = -(-(len(LONG) - 48 * num_chunks) // 48)
    assert cluster.workers["decode-0"].num_steps == num_chunks_left + 15, "a part was read again"


def test_a_prompt_that_was_read_but_for_the_word_of_it_is_not_read_again() -> None:
    cluster, heard = granted()
    lose_filled(cluster)
    cluster.kill("prefill-0")
    finish(cluster)
    assert heard.answer == greedy(heard)
    assert cluster.workers["decode-0"].num_steps == 1 + 15, "the last two tokens, for the logits"


@pytest.mark.parametrize("num_chunks", [1, 3])
@pytest.mark.parametrize("heir", ["decode-1", "decode-0"])
def test_another_owner_reads_on_where_one_has_died(num_chunks: int, heir: str) -> None:
    cluster, heard = granted(chunk_tokens=48, num_decode=2)
    cluster.deliver("decode-0", "prefill-0")
    for _ in range(num_chunks):
        cluster.step("prefill-0")
    num_steps = cluster.workers["prefill-0"].num_steps
    cluster.kill("decode-0")
    if heir == "decode-0":
        cluster.revive("decode-0")
    cluster.migrate(heard, "decode-0", heir, prefill="prefill-0")
    finish(cluster)
    assert heard.answer == greedy(heard)
    num_chunks_left = -(-(len(LONG) - 48 * num_chunks) // 48)
    assert cluster.workers["prefill-0"].num_steps - num_steps == num_chunks_left, "a part was read again"


def test_log_probabilities_of_a_prompt_are_computed_in_one_place() -> None:
    cluster = start_roles(chunk_tokens=48)
    heard = cluster.submit(LONG, num_prompt_logprobs=1)
    cluster.deliver_all()
    cluster.step("prefill-0")
    cluster.kill("prefill-0")
    finish(cluster)
    assert heard.started[0].prompt_logprobs is not None
    assert len(heard.started[0].prompt_logprobs) == len(LONG) - 1
