"""Noise, damaged and senseless messages among honest ones, at any moment: answers are right, every block comes back.

What is forged so that it makes sense (an `Abort` of a request that is there, an answer under its epoch) is believed, so
here it never is: strangers know the names of requests and workers, but no epoch that is in use.
"""

import logging
from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.hostile_frames import HostileMessages, Known
from tests.worker.role_cluster import RoleCluster, start_roles

from diptych.core.messages import Abort, PeerGone, Remains, Submit, SubmitRemains, ToWorker
from diptych.wire.dropped import DroppedMessages
from diptych.wire.frame import FrameDecoder

MAX_EXAMPLES = 60


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def known_to_strangers(cluster: RoleCluster) -> Known:
    addresses = [
        {"worker_id": name, "endpoint": name, "incarnation": cluster.address(name).incarnation}
        for name in cluster.settings.roles
    ]
    now_s = cluster.clock.now_s()
    return {
        "request_id": ["stranger", "another", "request-0"],
        "worker_id": [*cluster.settings.roles, "prefill-9"],
        "incarnation": [7, 8],
        "endpoint": list(cluster.settings.roles),
        "decode": addresses,
        "prefill": [*addresses, None],
        "borrower": addresses,
        "lender": addresses,
        "source": addresses,
        "num_blocks": [1, 3, 100],
        "epoch": [0, 1, 5, 2**40 + 1000, 2**41 + 1000, 2**62],
        "prompt_token_ids": [[1, 2, 3], [5] * 31, [5] * 32, [5] * 33, [7] * 200, [999], [1000]],
        "block_table": [[0], [0, 1], [1, 2, 3], list(range(7)), [3, 3], [10**6]],
        "num_cached_tokens": [0, 32, 64, 5],
        "attempt": [0, 1],
        "num_choices": [1, 2, 3],
        "arrived_s": [now_s, now_s, now_s + 1e6],
        "deadline_s": [now_s + 1e4, now_s + 1e4, now_s],
        "max_tokens": [1, 5, 50],
        "grammar": [None, "", "{}", '{"grammars": []}', "start: /[/"],
    }


def is_forged(cluster: RoleCluster, receiver: str, message: ToWorker | Remains | None) -> bool:
    """Tell whether a message could be an honest one: the end of a request or a worker, or a request's first word."""
    match message:
        case Abort(request_id=request_id):
            return request_id in cluster.heard
        case PeerGone(worker_id=worker_id, incarnation=incarnation):
            return cluster.may_have_been(worker_id, incarnation)
        case Submit(request=request) | SubmitRemains(request=request) if request.request_id in cluster.heard:
            return receiver != "decode-0" or not cluster.workers[receiver].decode.roster.find(request.request_id)
        case _:
            return False


def deliver_hostile(cluster: RoleCluster, draw: Random, receiver: str) -> None:
    """Deliver a frame that no honest process has sent."""
    frame = HostileMessages(ToWorker, draw, known_to_strangers(cluster)).frame()
    decoder: FrameDecoder[ToWorker | Remains] = FrameDecoder(ToWorker, DroppedMessages("nobody's"), Remains)
    if not is_forged(cluster, receiver, decoder.try_decode(frame)):
        cluster.deliver_frame(receiver, frame)


def live_through(cluster: RoleCluster, draw: Random, num_moments: int) -> None:
    cluster.has_strangers = True
    for number in range(num_moments):
        if number % 8 == 0:
            begin = draw.randrange(50)
            prompt = [(3 * position + begin) % 900 for position in range(draw.choice([5, 40, 100]))]
            cluster.submit(prompt, max_tokens=draw.choice([1, 20, 60]), num_choices=draw.choice([1, 1, 2]))
        worker_id = draw.choice(list(cluster.workers))
        match draw.randrange(4):
            case 0:
                for _ in range(3):
                    deliver_hostile(cluster, draw, worker_id)
            case 1 if cluster.letters.waiting():
                cluster.deliver(*draw.choice(cluster.letters.waiting()))
            case 2 if cluster.workers[worker_id].parts is None:
                cluster.begin(worker_id)
            case 3 if cluster.workers[worker_id].parts is not None:
                cluster.end(worker_id)
    cluster.run(max_rounds=10_000)  # strangers ask for answers without end, and preempt each other
    cluster.check_answers()
    cluster.check_idle()


@settings(max_examples=MAX_EXAMPLES)
@given(draw=st.randoms(use_true_random=False), is_adaptive=st.booleans(), num_blocks=st.sampled_from([10, 20]))
def test_among_honest_messages(draw: Random, is_adaptive: bool, num_blocks: int) -> None:
    cluster = start_roles(num_blocks=num_blocks, is_adaptive=is_adaptive, chunk_tokens=32)
    live_through(cluster, draw, 40)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_many_of_them(seed: int) -> None:
    for number in range(40):
        draw = Random(1000 * seed + number)
        cluster = start_roles(num_decode=1 + number % 2, is_adaptive=bool(number % 3), chunk_tokens=32)
        live_through(cluster, draw, 200)
