"""What comes of a request goes to the router that asked, and a router's end is that of its own requests alone."""

import msgspec
from tests.worker.role_cluster import PATIENCE_S, RoleCluster, start_roles

from diptych.core.ids import FIRST_ROUTER, RequestId, RouterId, WorkerId
from diptych.core.messages import (
    Abort,
    Aborted,
    CacheChange,
    Failed,
    FailureKind,
    Finished,
    FrontendGone,
    Submit,
    Tokens,
)
from diptych.core.request import Request, SamplingParams
from diptych.engine.modeled_engine import expected_tokens
from diptych.worker.report import Report

LONG = [7 * i % 900 for i in range(200)]
VOCAB_SIZE = 1000
OTHER = RouterId(1)


def submit_to_other(cluster: RoleCluster, name: str, prompt: list[int], max_tokens: int = 5, life: int = 1) -> None:
    """Ask as the second router does."""
    request = Request(
        request_id=RequestId(name),
        prompt_token_ids=prompt,
        sampling=SamplingParams(max_tokens=max_tokens, temperature=0.0),
        deadline_s=cluster.clock.now_s() + PATIENCE_S,
        arrived_s=cluster.clock.now_s(),
    )
    address = cluster.address("prefill-0")
    submit = Submit(request=request, attempt=0, prefill=address, router=OTHER, frontend=life)
    cluster.letters.send("router", "decode-0", submit)


def told_other(cluster: RoleCluster, name: str) -> tuple[list[int], list[Finished | Aborted | Failed]]:
    """Return the tokens of a request that the second router was told, and its ends."""
    tokens: dict[int, int] = {}
    ends: list[Finished | Aborted | Failed] = []
    for message in cluster.told_others:
        assert isinstance(message, Tokens)
        tokens |= {event.index: event.token_id for event in message.tokens if event.request_id == name}
        told: list[Finished | Aborted | Failed] = [*message.finished, *message.aborted, *message.failed]
        ends += [end for end in told if end.request_id == name]
    return [tokens[index] for index in sorted(tokens)], ends


def finish(cluster: RoleCluster) -> None:
    cluster.run()
    cluster.has_strangers = True  # blocks keep the records of the other router's requests
    cluster.check_answers()
    cluster.check_idle()


def test_each_router_hears_of_its_own_requests_from_both_workers() -> None:
    cluster = start_roles(num_routers=2)
    heard = cluster.submit(LONG[:50], 5)
    submit_to_other(cluster, "theirs", LONG[50:120])
    finish(cluster)  # where the first router would hear of a request that is not its own, this fails
    assert heard.answer == expected_tokens(LONG[:50], 5, VOCAB_SIZE)
    tokens, ends = told_other(cluster, "theirs")
    assert tokens == expected_tokens(LONG[50:120], 5, VOCAB_SIZE)
    assert [type(end) for end in ends] == [Finished]
    told_by = {message.worker_id for message in cluster.told_others if isinstance(message, Tokens)}
    assert told_by == {"decode-0", "prefill-0"}


def test_the_end_of_one_frontend_is_not_that_of_the_others_requests() -> None:
    cluster = start_roles(num_routers=2)
    heard = cluster.submit(LONG[:50], 30)
    submit_to_other(cluster, "theirs", LONG[50:120], 30, life=3)
    while len(heard.tokens) < 5:
        cluster.deliver_all()
        cluster.step("prefill-0")
        cluster.step("decode-0")
    cluster.letters.send("router", "decode-0", FrontendGone(router=OTHER, incarnation=3))
    finish(cluster)
    assert heard.answer == expected_tokens(LONG[:50], 30, VOCAB_SIZE)
    _, ends = told_other(cluster, "theirs")
    assert [type(end) for end in ends] == [Aborted]


def test_requests_of_one_name_do_not_touch_each_other() -> None:
    cluster = start_roles(num_routers=2)
    heard = cluster.submit(LONG[:50], 5)
    name = heard.request.request_id
    submit_to_other(cluster, name, LONG[50:120])
    cluster.letters.send("router", "decode-0", Abort(request_id=name, router=OTHER))
    finish(cluster)
    assert heard.answer == expected_tokens(LONG[:50], 5, VOCAB_SIZE)
    tokens, ends = told_other(cluster, name)
    assert tokens == []
    (end,) = ends
    assert isinstance(end, Failed) and end.kind is FailureKind.INVALID
    assert f"{name} is here already" in end.message


def test_a_router_that_does_not_exist_is_not_served() -> None:
    cluster = start_roles(num_routers=1)
    submit_to_other(cluster, "theirs", LONG[:50])
    cluster.run()
    cluster.check_idle()
    assert cluster.told_others == []


def test_changes_of_the_cache_are_told_to_all_and_the_rest_to_whom_it_concerns() -> None:
    report = Report()
    worker, change = WorkerId("decode-0"), CacheChange(sequence=1, stored=[], removed=[])
    assert report.take(worker, 1, None, [FIRST_ROUTER, OTHER]) == {}
    report.of(OTHER).aborted.append(Aborted(request_id=RequestId("r"), choice=0, num_output_tokens=1, timeline={}))
    told = report.take(worker, 1, change, [FIRST_ROUTER, OTHER])
    assert [len(message.aborted) for message in told.values()] == [0, 1]
    assert [message.cache_change for message in told.values()] == [change, change]
    assert report.take(worker, 1, None, [FIRST_ROUTER, OTHER]) == {}
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(told[OTHER]), type=Tokens) == told[OTHER]
