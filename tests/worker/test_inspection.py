"""Messages to a worker that are well-formed and make no sense: dropped, counted, answered where somebody waits."""

import math
from typing import Any

import msgspec
import pytest
from tests.worker.role_cluster import VOCAB_SIZE, Heard, RoleCluster, start_roles

from diptych.core.ids import BlockId, WorkerId
from diptych.core.messages import (
    Abort,
    Borrow,
    CacheSnapshotWanted,
    CopyOrder,
    Failed,
    FailureKind,
    Filled,
    Grant,
    GrantEnded,
    Lent,
    Message,
    PeerAddress,
    PeerGone,
    Revoke,
    Submit,
    ToWorker,
)
from diptych.wire.frame import HEADER, encode_frame

PROMPT = [7 * number % 900 for number in range(100)]


def letter(cluster: RoleCluster, sender: str, receiver: str) -> ToWorker:
    """Take the oldest letter of a route."""
    kinds: Any = ToWorker
    message: ToWorker = msgspec.msgpack.decode(cluster.letters.take((sender, receiver)), type=kinds)
    return message


def changed(message: Message, **changes: Any) -> bytes:
    """Return the frame of a message with other values, right or wrong, also in what it holds (`sampling__top_k`)."""
    made = msgspec.to_builtins(message, builtin_types=(bytes,))
    for path, value in changes.items():
        *holders, name = path.split("__")
        holder = made
        for one in holders:
            holder = holder[one]
        holder[name] = value
    return HEADER + msgspec.msgpack.encode(made)


def give(cluster: RoleCluster, receiver: str, message: ToWorker) -> None:
    """Deliver a message that is not among the letters."""
    cluster.deliver_frame(receiver, encode_frame(message))


def num_dropped(cluster: RoleCluster, worker_id: str) -> int:
    return cluster.workers[worker_id].dropped.num_dropped


def check_all_is_well(cluster: RoleCluster, heard: Heard) -> None:
    cluster.run()
    assert heard.answer == cluster.reference(heard.request)[0]
    late = cluster.submit(PROMPT[50:])
    cluster.run()
    assert late.answer == cluster.reference(late.request)[0]
    cluster.check_answers()
    cluster.check_idle()


SAMPLINGS: list[dict[str, Any]] = [
    {"max_tokens": 0},
    {"max_tokens": -1},
    {"temperature": math.nan},
    {"temperature": -1.0},
    {"temperature": math.inf},
    {"top_p": 0.0},
    {"top_p": math.nan},
    {"top_k": -1},
    {"min_p": 1.5},
    {"presence_penalty": math.nan},
    {"repetition_penalty": 0.0},
    {"logit_bias": {5: math.inf}},
    {"bad_words": [[-(10**9)]]},
    {"num_logprobs": -1},
    {"num_logprobs": 10**9},
    {"num_prompt_logprobs": VOCAB_SIZE + 1},
]
GRANTS: list[dict[str, Any]] = [
    {"block_table": [0, 1, 2, 10**6]},
    {"block_table": [0, 1, 2, -1]},
    {"block_table": [0, 1, 2, 2]},
    {"block_table": [0, 1]},
    {"block_table": []},
    {"block_table": [20, 21, 22, 23]},
    {"prompt_token_ids": []},
    {"prompt_token_ids": [-1]},
    {"prompt_token_ids": [VOCAB_SIZE]},
    {"num_cached_tokens": 128},
    {"num_cached_tokens": -32},
    {"choices": [0, 0]},
    {"choices": [-1]},
    {"choices": [2**64 - 1]},
    {"choices": list(range(1000))},
    {"first_token_mask": b""},
    {"first_token_mask": b"\xff" * 999},
    {"deadline_s": math.nan},
    {"arrived_s": math.inf},
    {"arrived_s": 1e9},
    {"epoch": 5},
    {"epoch": 0},
    {"shared_epochs": [-1]},
    {"sampling": None},
    *[{f"sampling__{name}": value for name, value in sampling.items()} for sampling in SAMPLINGS],
]


@pytest.mark.parametrize("changes", GRANTS, ids=str)
def test_a_senseless_grant_is_given_back(changes: dict[str, Any]) -> None:
    cluster = start_roles()
    heard = cluster.submit(PROMPT)
    cluster.deliver("router", "decode-0")
    grant = letter(cluster, "decode-0", "prefill-0")
    cluster.deliver_frame("prefill-0", changed(grant, **changes))

    assert num_dropped(cluster, "prefill-0") == 1
    ended = letter(cluster, "prefill-0", "decode-0")
    assert isinstance(ended, GrantEnded)
    if "epoch" not in changes:  # what the decode worker waits for
        give(cluster, "decode-0", ended)
    else:
        give(cluster, "prefill-0", grant)
    check_all_is_well(cluster, heard)


def test_blocks_of_others_are_not_written_whoever_grants_them() -> None:
    cluster = start_roles(num_decode=2)
    heard = cluster.submit(PROMPT)
    cluster.deliver("router", "decode-0")
    grant = letter(cluster, "decode-0", "prefill-0")
    assert isinstance(grant, Grant)
    theirs = [BlockId(block_id) for block_id in range(40, 44)]
    cluster.header.reserve(theirs, grant.epoch)  # even if they had guessed the epoch
    cluster.deliver_frame("prefill-0", changed(grant, block_table=theirs))

    assert num_dropped(cluster, "prefill-0") == 1
    cluster.deliver_all()
    check_all_is_well(cluster, heard)


@pytest.mark.parametrize(
    "address",
    [
        PeerAddress(WorkerId("decode-0"), "tcp://example.com:80", 2),
        PeerAddress(WorkerId("decode-0"), "decode-0", 99),
        PeerAddress(WorkerId("decode-7"), "decode-7", 1),
        PeerAddress(WorkerId("prefill-0"), "prefill-0", 1),
    ],
    ids=str,
)
def test_strangers_who_grant_and_revoke_are_not_written_to(address: PeerAddress) -> None:
    cluster = start_roles()
    heard = cluster.submit(PROMPT)
    cluster.deliver("router", "decode-0")
    grant = letter(cluster, "decode-0", "prefill-0")
    assert isinstance(grant, Grant)
    give(cluster, "prefill-0", msgspec.structs.replace(grant, decode=address))
    give(cluster, "prefill-0", Revoke(request_id=grant.request_id, epoch=grant.epoch, decode=address))
    assert num_dropped(cluster, "prefill-0") == 2
    assert [route for route in cluster.letters.waiting() if address.worker_id != "prefill-0"] == []

    give(cluster, "prefill-0", grant)
    check_all_is_well(cluster, heard)


def test_a_grant_that_comes_twice_is_read_once() -> None:
    cluster = start_roles()
    heard = cluster.submit(PROMPT)
    cluster.deliver("router", "decode-0")
    grant = letter(cluster, "decode-0", "prefill-0")
    for _ in range(2):
        cluster.deliver_frame("prefill-0", encode_frame(grant))
    cluster.deliver_frame("prefill-0", changed(grant, choices=[-1]))  # what is left of it has its epoch
    assert num_dropped(cluster, "prefill-0") == 2
    assert cluster.letters.waiting() == []
    check_all_is_well(cluster, heard)


@pytest.mark.parametrize(
    "changes",
    [
        {"request__prompt_token_ids": []},
        {"request__prompt_token_ids": [VOCAB_SIZE]},
        {"request__num_choices": 0},
        {"request__num_choices": 10**9},
        {"request__deadline_s": math.nan},
        {"request__arrived_s": math.nan},
        {"request__arrived_s": 1e9},
        {"request__cache_salt": "x" * 10_000},
        *[{f"request__sampling__{name}": value for name, value in sampling.items()} for sampling in SAMPLINGS],
    ],
    ids=str,
)
def test_a_senseless_submit_is_refused(changes: dict[str, Any]) -> None:
    cluster = start_roles()
    heard = cluster.submit(PROMPT)
    hostile = cluster.submit(PROMPT)
    cluster.deliver("router", "decode-0")
    cluster.deliver_frame("decode-0", changed(letter(cluster, "router", "decode-0"), **changes))
    cluster.deliver_all()

    (end,) = hostile.ends
    assert isinstance(end, Failed)
    assert end.kind is FailureKind.INVALID
    del cluster.heard[hostile.request.request_id]
    check_all_is_well(cluster, heard)


def test_a_submit_that_comes_twice_is_served_once() -> None:
    cluster = start_roles()
    heard = cluster.submit(PROMPT)
    frame = encode_frame(letter(cluster, "router", "decode-0"))
    for _ in range(3):
        cluster.deliver_frame("decode-0", frame)
    assert num_dropped(cluster, "decode-0") == 2
    check_all_is_well(cluster, heard)


def test_another_attempt_at_what_is_being_served_is_refused() -> None:
    cluster = start_roles()
    heard = cluster.submit(PROMPT)
    submit = letter(cluster, "router", "decode-0")
    assert isinstance(submit, Submit)
    give(cluster, "decode-0", submit)
    give(cluster, "decode-0", msgspec.structs.replace(submit, attempt=1))
    data = cluster.letters.take(("decode-0", "router"))
    (failed,) = msgspec.msgpack.decode(data)["failed"]
    assert (failed["attempt"], failed["kind"]) == (1, "refused")
    check_all_is_well(cluster, heard)


@pytest.mark.parametrize(
    "reader",
    [
        PeerAddress(WorkerId("decode-0"), "decode-0", 2),
        PeerAddress(WorkerId("prefill-0"), "prefill-0", 9),
        PeerAddress(WorkerId("prefill-9"), "prefill-9", 1),
        PeerAddress(WorkerId("prefill-0"), "tcp://example.com:80", 1),
    ],
    ids=str,
)
def test_a_prompt_whose_reader_is_not_there_is_read_here(reader: PeerAddress) -> None:
    cluster = start_roles()
    heard = cluster.submit(PROMPT)
    submit = letter(cluster, "router", "decode-0")
    assert isinstance(submit, Submit)
    give(cluster, "decode-0", msgspec.structs.replace(submit, prefill=reader))
    assert cluster.letters.waiting() == []
    check_all_is_well(cluster, heard)


@pytest.mark.parametrize(
    "changes",
    [
        {"first_tokens": []},
        {"first_tokens": [[5], [5]]},
        {"first_tokens": [[VOCAB_SIZE]]},
        {"first_tokens": [[-1]]},
        {"first_tokens": [[5, [-1.0, 1, []]]]},
        {"prompt_logprobs": []},
        {"request_id": "another"},
        {"first_token_s": math.nan},
        {"prefill_started_s": -1.0},
        {"epoch": 10**9},
    ],
    ids=str,
)
def test_a_senseless_filled_settles_nothing(changes: dict[str, Any]) -> None:
    cluster = start_roles()
    heard = cluster.submit(PROMPT)
    cluster.deliver_all()
    while ("prefill-0", "decode-0") not in cluster.letters.waiting():
        cluster.step("prefill-0")
    filled = letter(cluster, "prefill-0", "decode-0")
    assert isinstance(filled, Filled)
    cluster.deliver_frame("decode-0", changed(filled, **changes))
    assert heard.tokens == {}
    give(cluster, "decode-0", filled)
    check_all_is_well(cluster, heard)


def test_a_worker_without_the_role_says_so() -> None:
    cluster = start_roles()
    heard = cluster.submit(PROMPT)
    submit = letter(cluster, "router", "decode-0")
    give(cluster, "decode-0", submit)
    grant = letter(cluster, "decode-0", "prefill-0")
    give(cluster, "decode-0", msgspec.structs.replace(grant, epoch=5))
    ended = letter(cluster, "decode-0", "decode-0")
    assert isinstance(ended, GrantEnded)

    give(cluster, "prefill-0", submit)
    (failed,) = msgspec.msgpack.decode(cluster.letters.take(("prefill-0", "router")))["failed"]
    assert failed["kind"] == "refused"
    num_before = num_dropped(cluster, "prefill-0")
    give(cluster, "prefill-0", CacheSnapshotWanted())
    assert num_dropped(cluster, "prefill-0") == num_before + 1
    give(cluster, "prefill-0", grant)
    check_all_is_well(cluster, heard)


def test_ends_of_what_is_not_there_change_nothing() -> None:
    cluster = start_roles()
    heard = cluster.submit(PROMPT)
    cluster.deliver_all()
    request_id = heard.request.request_id
    for worker in cluster.workers:
        give(cluster, worker, PeerGone(worker_id=WorkerId("prefill-0"), incarnation=99))
        give(cluster, worker, PeerGone(worker_id=WorkerId("decode-0"), incarnation=99))
        give(cluster, worker, PeerGone(worker_id=WorkerId("stranger"), incarnation=1))
        give(cluster, worker, GrantEnded(request_id=request_id, epoch=99, reason="x" * 1000))
        give(cluster, worker, Abort(request_id=request_id, choice=99))
    check_all_is_well(cluster, heard)


def wish_to_borrow(cluster: RoleCluster) -> tuple[Heard, Borrow]:
    """Return what decode-1 asks decode-0 for, which has the prompt in its cache."""
    cluster.submit([*PROMPT, 1, 2])
    cluster.run()
    heard = cluster.submit([*PROMPT, 3, 4], to="decode-1", copy_from="decode-0")
    cluster.deliver("router", "decode-1")
    borrow = letter(cluster, "decode-1", "decode-0")
    assert isinstance(borrow, Borrow)
    return heard, borrow


@pytest.mark.parametrize(
    "changes",
    [
        {"borrower__endpoint": "tcp://example.com:80"},
        {"borrower__incarnation": 99},
        {"borrower__worker_id": "prefill-0", "borrower__endpoint": "prefill-0", "borrower__incarnation": 1},
        {"borrower__worker_id": "decode-0", "borrower__endpoint": "decode-0", "borrower__incarnation": 2},
        {"hashes": []},
        {"hashes": [b"short"]},
        {"epoch": -1},
        {"deadline_s": math.nan},
    ],
    ids=str,
)
def test_nothing_is_lent_on_a_senseless_wish(changes: dict[str, Any]) -> None:
    cluster = start_roles(num_decode=2)
    heard, borrow = wish_to_borrow(cluster)
    cluster.deliver_frame("decode-0", changed(borrow, **changes))
    assert num_dropped(cluster, "decode-0") == 1
    assert cluster.workers["decode-0"].decode.loans.num_blocks == 0
    assert cluster.letters.waiting() == []
    give(cluster, "decode-0", borrow)
    check_all_is_well(cluster, heard)


def test_a_wish_is_met_once() -> None:
    cluster = start_roles(num_decode=2)
    heard, borrow = wish_to_borrow(cluster)
    for _ in range(2):
        give(cluster, "decode-0", borrow)
    assert cluster.workers["decode-0"].decode.loans.num_blocks == 3
    assert len(cluster.letters.queues["decode-0", "decode-1"]) == 1
    check_all_is_well(cluster, heard)


def test_a_worker_without_a_cache_says_that_it_lends_nothing() -> None:
    cluster = start_roles(num_decode=2)
    heard, borrow = wish_to_borrow(cluster)
    give(cluster, "prefill-0", borrow)
    lent = letter(cluster, "prefill-0", "decode-1")
    assert isinstance(lent, Lent)
    assert lent.block_ids == []
    give(cluster, "decode-0", borrow)
    check_all_is_well(cluster, heard)


@pytest.mark.parametrize(
    "changes",
    [
        {"block_ids": [0, 1, 2, 3]},
        {"block_ids": [10**6]},
        {"block_ids": [-1]},
        {"block_ids": [40, 41]},
        {"request_id": "another"},
        {"lender__worker_id": "prefill-0", "lender__endpoint": "prefill-0", "lender__incarnation": 1},
        {"lender__endpoint": "tcp://example.com:80"},
    ],
    ids=str,
)
def test_nothing_is_copied_on_a_senseless_loan(changes: dict[str, Any]) -> None:
    cluster = start_roles(num_decode=2)
    heard, borrow = wish_to_borrow(cluster)
    give(cluster, "decode-0", borrow)
    lent = letter(cluster, "decode-0", "decode-1")
    cluster.deliver_frame("decode-1", changed(lent, **changes))
    assert num_dropped(cluster, "decode-1") == 1
    assert not cluster.copy("decode-1")
    for _ in range(2):
        give(cluster, "decode-1", lent)
    assert num_dropped(cluster, "decode-1") == 2, "it is lent once"
    check_all_is_well(cluster, heard)
    assert heard.finished.num_cached_tokens == 96


@pytest.mark.parametrize(
    "source",
    [
        PeerAddress(WorkerId("decode-1"), "decode-1", 3),
        PeerAddress(WorkerId("decode-0"), "decode-0", 99),
        PeerAddress(WorkerId("prefill-0"), "prefill-0", 1),
        PeerAddress(WorkerId("decode-0"), "tcp://example.com:80", 2),
    ],
    ids=str,
)
def test_a_prefix_whose_holder_is_not_there_is_computed(source: PeerAddress) -> None:
    cluster = start_roles(num_decode=2)
    heard = cluster.submit(PROMPT, to="decode-1", prefill=None)
    submit = letter(cluster, "router", "decode-1")
    assert isinstance(submit, Submit)
    give(cluster, "decode-1", msgspec.structs.replace(submit, copy=CopyOrder(3, source)))
    assert cluster.letters.waiting() == []
    check_all_is_well(cluster, heard)
