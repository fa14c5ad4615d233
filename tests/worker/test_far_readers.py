"""Prompts that a worker of another machine reads: in blocks of its own, pushed as they fill, safe at every moment."""

import msgspec
import pytest
from tests.worker.role_cluster import Heard, RoleCluster, start_roles

from diptych.core.events import Lifecycle
from diptych.core.messages import Filled, Grant, GrantEnded, Pushed
from diptych.engine.modeled_engine import expected_tokens
from diptych.worker.sequence import Sequence, SequenceState

VOCAB_SIZE = 1000
LONG = [7 * i % 900 for i in range(200)]


def greedy(heard: Heard, num_tokens: int = 16) -> list[int]:
    return expected_tokens(heard.request.prompt_token_ids, num_tokens, VOCAB_SIZE)


def finish(cluster: RoleCluster) -> None:
    cluster.run()
    cluster.check_answers()
    cluster.check_idle()


def deliver_until_granted(cluster: RoleCluster) -> None:
    cluster.deliver("router", "decode-0")
    cluster.deliver("decode-0", "prefill-0")


def num_moved_blocks(cluster: RoleCluster) -> int:
    return sum(link.num_moved_blocks for link in cluster.wires.links())


# The same answer


@pytest.mark.parametrize("chunk_tokens", [16, 33, 256])
@pytest.mark.parametrize("num_prompt_tokens", [31, 32, 33, 64, 65, 200])
def test_the_machine_of_the_reader_does_not_show_in_the_answer(chunk_tokens: int, num_prompt_tokens: int) -> None:
    cluster = start_roles(is_far=True, chunk_tokens=chunk_tokens)
    heard = cluster.submit(LONG[:num_prompt_tokens], 40)

    finish(cluster)

    assert heard.answer == greedy(heard, 40)
    assert Lifecycle.GRANTED in heard.finished.timeline
    assert num_moved_blocks(cluster) == -(-num_prompt_tokens // 32)


def test_the_first_token_does_not_wait_for_what_moves() -> None:
    cluster = start_roles(is_far=True, chunk_tokens=256)
    heard = cluster.submit(LONG)
    deliver_until_granted(cluster)
    cluster.step("prefill-0")
    while cluster.letters.queues[("prefill-0", "router")]:
        cluster.deliver("prefill-0", "router")

    assert len(heard.tokens) == 1
    assert not cluster.letters.queues.get(("prefill-0", "decode-0"))
    finish(cluster)


def say_ahead(cluster: RoleCluster) -> Sequence:
    """Have a prompt read whose blocks go inline, and its owner told so; return it. Nothing has moved yet."""
    cluster.submit(LONG)
    deliver_until_granted(cluster)
    cluster.step("prefill-0")
    cluster.deliver("prefill-0", "decode-0")
    (sequence,) = cluster.workers["decode-0"].decode.roster.placed
    assert sequence.state is SequenceState.GRANTED
    return sequence


def test_said_ahead_its_owner_goes_on_as_soon_as_all_has_landed() -> None:
    cluster = start_roles(is_far=True, is_inline=True, chunk_tokens=256)
    sequence = say_ahead(cluster)
    cluster.transfer()
    assert sequence.state is SequenceState.GRANTED, "it is moving"
    cluster.transfer()

    assert sequence.is_decoding, "though nobody has said that it has landed"
    finish(cluster)
    (heard,) = cluster.heard.values()
    assert heard.answer == greedy(heard)


def test_said_ahead_what_does_not_come_is_read_by_its_owner() -> None:
    cluster = start_roles(is_far=True, is_inline=True, chunk_tokens=256)
    sequence = say_ahead(cluster)
    cluster.transfer()
    (link,) = cluster.wires.links()
    link.waiting[0].end("a cable was pulled")
    cluster.transfer()

    assert sequence.state is SequenceState.GRANTED
    finish(cluster)
    (heard,) = cluster.heard.values()
    assert heard.answer == greedy(heard)
    assert num_moved_blocks(cluster) == 0


def test_said_ahead_it_does_not_matter_that_the_sender_has_not_heard_what_has_landed() -> None:
    cluster = start_roles(is_far=True, is_inline=True, chunk_tokens=256)
    sequence = say_ahead(cluster)
    cluster.transfer()
    cluster.transfer(does_fail=True)

    assert sequence.is_decoding
    finish(cluster)
    (heard,) = cluster.heard.values()
    assert heard.answer == greedy(heard)


def test_blocks_move_while_the_next_are_computed() -> None:
    cluster = start_roles(is_far=True, chunk_tokens=64)
    cluster.submit(LONG)
    deliver_until_granted(cluster)
    cluster.step("prefill-0")
    cluster.begin("prefill-0")
    while cluster.transfer():
        pass
    cluster.deliver("prefill-0", "decode-0")

    decode = cluster.workers["decode-0"].decode
    assert decode.blocks.is_begun(decode.roster.placed[0]), "its owner knows how far it is"
    finish(cluster)


def test_only_blocks_that_the_owner_does_not_have_are_pushed() -> None:
    cluster = start_roles(is_far=True)
    cluster.submit(LONG[:100])
    finish(cluster)
    num_before = num_moved_blocks(cluster)
    again = cluster.submit(LONG[:96] + [3] * 40)
    finish(cluster)

    assert again.finished.num_cached_tokens == 96
    assert num_moved_blocks(cluster) - num_before == 2, "136 tokens are 5 blocks, of which 3 are cached"
    assert again.answer == greedy(again)


def test_what_was_read_stays_in_the_readers_cache() -> None:
    cluster = start_roles(is_far=True, num_decode=2)
    cluster.submit(LONG[:128])
    finish(cluster)
    num_before = num_moved_blocks(cluster)
    reader = cluster.workers["prefill-0"]
    num_steps = reader.num_steps
    again = cluster.submit([*LONG[:128], *LONG[:20]], to="decode-1")
    finish(cluster)

    assert again.answer == greedy(again)
    assert num_moved_blocks(cluster) - num_before == 5, "the other worker has nothing of it"
    assert reader.num_steps - num_steps == 1, "128 of the tokens were not computed again"


@pytest.mark.parametrize(("byte_s", "num_fetched"), [(1e-9, 4), (1.0, 0)])
def test_a_prefix_of_the_owners_is_fetched_where_that_is_sooner(byte_s: float, num_fetched: int) -> None:
    cluster = start_roles(is_far=True)
    cluster.submit(LONG[:128], prefill=None)
    finish(cluster)
    again = cluster.submit([*LONG[:128], *LONG[:40]])
    cluster.set_link_speed("prefill-0", "decode-0", byte_s)
    finish(cluster)

    assert again.finished.num_cached_tokens == 128
    assert num_moved_blocks(cluster) == num_fetched + 2
    assert again.answer == greedy(again)


def test_a_prefix_that_cannot_be_fetched_is_computed() -> None:
    cluster = start_roles(is_far=True)
    cluster.submit(LONG[:128], prefill=None)
    finish(cluster)
    again = cluster.submit([*LONG[:128], *LONG[:40]])
    cluster.set_link_speed("prefill-0", "decode-0", 1e-9)
    deliver_until_granted(cluster)
    cluster.begin("prefill-0")
    cluster.transfer()
    cluster.transfer(does_fail=True)
    finish(cluster)

    assert again.answer == greedy(again)


@pytest.mark.parametrize("num_choices", [1, 3])
def test_several_answers_and_logprobs(num_choices: int) -> None:
    cluster = start_roles(is_far=True)
    heard = cluster.submit(LONG[:70], num_choices=num_choices, num_logprobs=2, num_prompt_logprobs=1)
    finish(cluster)

    assert heard.started[-1].prompt_logprobs is not None
    assert len(heard.started[-1].prompt_logprobs) == 69


def test_more_prompts_than_the_reader_has_room_for_wait_for_each_other() -> None:
    cluster = start_roles(is_far=True, num_far_blocks=8, num_blocks=40)
    heards = [cluster.submit([number, *LONG[:199]]) for number in range(5)]
    finish(cluster)

    for heard in heards:
        assert heard.answer == greedy(heard)
        assert Lifecycle.GRANTED in heard.finished.timeline


def test_a_prompt_that_the_reader_can_never_hold_is_read_by_its_owner() -> None:
    cluster = start_roles(is_far=True, num_far_blocks=4)
    heard = cluster.submit(LONG)
    finish(cluster)
    assert heard.answer == greedy(heard)


# What goes wrong


def test_a_push_that_fails_gives_the_prompt_back_as_far_as_it_has_arrived() -> None:
    cluster = start_roles(is_far=True, chunk_tokens=64)
    heard = cluster.submit(LONG)
    deliver_until_granted(cluster)
    cluster.step("prefill-0")
    cluster.transfer()
    cluster.transfer()  # two blocks have arrived
    cluster.step("prefill-0")
    cluster.transfer()
    cluster.transfer(does_fail=True)
    cluster.begin("prefill-0")
    while cluster.letters.queues.get(("prefill-0", "decode-0")):
        cluster.deliver("prefill-0", "decode-0")
    (sequence,) = cluster.workers["decode-0"].decode.roster.placed

    assert sequence.num_computed_tokens == 64, "those two count, the rest does not"
    finish(cluster)
    assert heard.answer == greedy(heard)


def test_an_abort_frees_blocks_only_when_nothing_moves_into_them() -> None:
    cluster = start_roles(is_far=True, chunk_tokens=64)
    heard = cluster.submit(LONG)
    deliver_until_granted(cluster)
    cluster.step("prefill-0")
    cluster.transfer()  # the first two blocks are moving now
    cluster.abort(heard)
    cluster.deliver("router", "decode-0")
    decode = cluster.workers["decode-0"].decode

    assert decode.roster.grants.far.num_kept_blocks == 7
    assert decode.blocks.cache.num_available_blocks == decode.blocks.cache.num_blocks - 7
    cluster.transfer()
    assert decode.blocks.cache.num_available_blocks == decode.blocks.cache.num_blocks
    finish(cluster)


def test_an_abort_frees_blocks_at_once_if_nothing_moves() -> None:
    cluster = start_roles(is_far=True, chunk_tokens=64)
    heard = cluster.submit(LONG)
    deliver_until_granted(cluster)
    cluster.step("prefill-0")
    cluster.abort(heard)
    cluster.deliver("router", "decode-0")
    decode = cluster.workers["decode-0"].decode

    assert decode.blocks.cache.num_available_blocks == decode.blocks.cache.num_blocks, "no answer need be waited for"
    while cluster.transfer():
        pass
    assert num_moved_blocks(cluster) == 0, "what has been closed lets nothing in"
    finish(cluster)


@pytest.mark.parametrize("is_moving", [False, True])
def test_a_reader_that_is_gone_costs_nothing_but_time(is_moving: bool) -> None:
    cluster = start_roles(is_far=True, chunk_tokens=64)
    heard = cluster.submit(LONG)
    deliver_until_granted(cluster)
    cluster.step("prefill-0")
    if is_moving:
        cluster.transfer()
    cluster.kill("prefill-0")
    cluster.deliver("router", "decode-0")
    decode = cluster.workers["decode-0"].decode

    assert decode.roster.grants.far.num_kept_blocks == (7 if is_moving else 0), "its sequence has got others"
    finish(cluster)
    assert heard.answer == greedy(heard)


def test_an_owner_that_is_gone_leaves_nothing_at_the_reader() -> None:
    cluster = start_roles(is_far=True, num_decode=2, chunk_tokens=64)
    heard = cluster.submit(LONG)
    deliver_until_granted(cluster)
    cluster.step("prefill-0")
    cluster.transfer()
    cluster.kill("decode-0")
    cluster.migrate(heard, "decode-0", "decode-1", "prefill-0")
    finish(cluster)
    assert heard.answer == greedy(heard)


def test_a_mute_reader_elsewhere_need_not_die() -> None:
    cluster = start_roles(is_far=True, chunk_tokens=64)
    heard = cluster.submit(LONG)
    cluster.deliver("router", "decode-0")
    cluster.letters.queues.clear()  # the grant is lost, and so is the question
    cluster.clock.sleep(6.0)
    cluster.begin("decode-0")
    cluster.letters.queues.clear()
    cluster.clock.sleep(6.0)
    finish(cluster)

    assert not cluster.unheard
    assert heard.answer == greedy(heard)


def test_words_of_an_older_grant_change_nothing() -> None:
    cluster = start_roles(is_far=True, chunk_tokens=64)
    heard = cluster.submit(LONG)
    deliver_until_granted(cluster)
    epoch = cluster.workers["decode-0"].decode.roster.placed[0].epoch
    cluster.abort(heard)
    cluster.deliver("router", "decode-0")
    for message in (
        Pushed(request_id=heard.request.request_id, epoch=epoch, num_tokens=64),
        GrantEnded(request_id=heard.request.request_id, epoch=epoch, reason="late"),
    ):
        cluster.workers["decode-0"].receive(message)
    finish(cluster)


# What makes no sense


@pytest.mark.parametrize("num_tokens", [33, 201, 2**40])
def test_a_push_that_cannot_be_is_dropped(num_tokens: int) -> None:
    cluster = start_roles(is_far=True, chunk_tokens=64)
    heard = cluster.submit(LONG)
    cluster.deliver("router", "decode-0")
    worker = cluster.workers["decode-0"]
    epoch = worker.decode.roster.placed[0].epoch
    worker.receive(Pushed(request_id=heard.request.request_id, epoch=epoch, num_tokens=num_tokens))

    assert worker.dropped.num_dropped == 1
    finish(cluster)


@pytest.mark.parametrize("transfer", [None, "nowhere", ":", "host:port"])
def test_a_grant_without_a_way_back_is_refused(transfer: str | None) -> None:
    cluster = start_roles(is_far=True)
    heard = cluster.submit(LONG)
    cluster.deliver("router", "decode-0")
    route = ("decode-0", "prefill-0")
    grant = msgspec.msgpack.decode(cluster.letters.take(route), type=Grant)
    cluster.workers["prefill-0"].receive(msgspec.structs.replace(grant, transfer=transfer))

    assert cluster.workers["prefill-0"].dropped.num_dropped == 1
    finish(cluster)
    assert heard.answer == greedy(heard)


def test_a_writer_of_this_machine_pushes_nothing() -> None:
    cluster = start_roles()
    heard = cluster.submit(LONG)
    cluster.deliver("router", "decode-0")
    worker = cluster.workers["decode-0"]
    epoch = worker.decode.roster.placed[0].epoch
    worker.receive(Pushed(request_id=heard.request.request_id, epoch=epoch, num_tokens=64))
    assert worker.dropped.num_dropped == 1
    finish(cluster)


def forged(cluster: RoleCluster, heard: Heard, *, is_ahead: bool = False) -> Filled:
    """Return what a reader might say of the only prompt that is out."""
    (sequence,) = cluster.workers["decode-0"].decode.roster.placed
    return Filled(
        request_id=heard.request.request_id,
        epoch=sequence.epoch,
        first_tokens=[cluster.first_token(heard)],
        prompt_logprobs=None,
        prefill_started_s=1.0,
        first_token_s=2.0,
        is_ahead=is_ahead,
    )


def test_a_writer_of_this_machine_says_nothing_ahead() -> None:
    cluster = start_roles()
    heard = cluster.submit(LONG)
    deliver_until_granted(cluster)
    cluster.workers["decode-0"].receive(forged(cluster, heard, is_ahead=True))
    assert cluster.workers["decode-0"].dropped.num_dropped == 1
    finish(cluster)


def test_filled_is_not_believed_while_something_moves() -> None:
    cluster = start_roles(is_far=True, chunk_tokens=256)
    heard = cluster.submit(LONG)
    deliver_until_granted(cluster)
    cluster.step("prefill-0")
    cluster.transfer()  # moving
    worker = cluster.workers["decode-0"]
    worker.receive(forged(cluster, heard))
    assert worker.decode.roster.grants.far.num_kept_blocks == 7
    finish(cluster)
    assert heard.answer == greedy(heard)
