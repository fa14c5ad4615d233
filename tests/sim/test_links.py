"""Transfers that share ports: what each is said to take is what a look at every moment between gives."""

from collections.abc import Sequence
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.sim.clock import VirtualTime
from diptych.sim.links import Links
from diptych.sim.plan import LinkPlan

BYTES_PER_S, LATENCY_S = 1000.0, 0.01
MACHINES = ("a", "b", "c")


def plan() -> LinkPlan:
    return LinkPlan(bytes_per_s=BYTES_PER_S, latency_s=LATENCY_S, kv_bytes_per_token=1.0)


def arrivals(sent: Sequence[tuple[float, str, str, int]]) -> list[float]:
    """Return when each of some transfers arrives that begin at a time, from a machine to one, with so many bytes."""
    time = VirtualTime()
    links = Links(plan(), time)
    arrived = [-1.0] * len(sent)

    def begin(number: int) -> None:
        _, source, target, num_bytes = sent[number]

        def on_arrival() -> None:
            arrived[number] = time.now_s()

        links.send(links.open(source, target, on_arrival), num_bytes, is_last=True)

    for number, (begin_s, *_) in enumerate(sent):
        time.call_in(begin_s, partial(begin, number))
    time.environment.run()
    return arrived


def arrivals_by_slices(sent: Sequence[tuple[float, str, str, int]]) -> list[float]:
    """Return the same by going from one moment at which anything changes to the next, for each transfer by itself."""
    left = [float(num_bytes) for *_, num_bytes in sent]
    arrived = [-1.0] * len(sent)
    now_s = 0.0
    while any(one < 0 for one in arrived):
        under_way = [n for n, one in enumerate(sent) if one[0] <= now_s and arrived[n] < 0]
        speeds = {}
        for n in under_way:
            num_leaving = sum(sent[other][1] == sent[n][1] for other in under_way)
            num_arriving = sum(sent[other][2] == sent[n][2] for other in under_way)
            speeds[n] = BYTES_PER_S / max(num_leaving, num_arriving)
        ends_s = [now_s + left[n] / speeds[n] for n in under_way]
        begins_s = [one[0] for n, one in enumerate(sent) if one[0] > now_s]
        next_s = min(ends_s + begins_s)
        for n, end_s in zip(under_way, ends_s, strict=True):
            left[n] -= speeds[n] * (next_s - now_s)
            if end_s <= next_s + 1e-12:
                arrived[n] = end_s + LATENCY_S
        now_s = next_s
    return arrived


transfers = st.tuples(
    st.integers(0, 40).map(lambda tenths: tenths / 10),
    st.sampled_from(MACHINES[:2]),
    st.sampled_from(MACHINES[1:]),
    st.integers(1, 3000),
)


@given(st.lists(transfers, min_size=1, max_size=12))
def test_transfers_end_as_their_shares_of_the_ports_let_them(sent: list[tuple[float, str, str, int]]) -> None:
    assert arrivals(sent) == pytest.approx(arrivals_by_slices(sent), rel=1e-9)


def test_one_alone_takes_its_bytes_and_the_latency() -> None:
    assert arrivals([(1.0, "a", "b", 500)]) == pytest.approx([1.51])


def test_what_comes_in_chunks_is_over_with_the_last_one() -> None:
    time = VirtualTime()
    links, arrived = Links(plan(), time), []
    transfer = links.open("a", "b", lambda: arrived.append(time.now_s()))
    for begin_s, num_bytes, is_last in ((0.0, 300, False), (0.1, 300, False), (2.0, 100, True)):
        time.call_in(begin_s, partial(links.send, transfer, num_bytes, is_last=is_last))
    time.environment.run()

    assert arrived == pytest.approx([2.0 + 0.1 + LATENCY_S])
    assert links.sent_bytes == 700


def test_a_cancelled_one_never_arrives_and_leaves_its_share_to_the_others() -> None:
    time = VirtualTime()
    links, arrived = Links(plan(), time), []
    dead = links.open("a", "b", lambda: arrived.append(-1.0))
    alive = links.open("a", "c", lambda: arrived.append(time.now_s()))
    links.send(dead, 1000, is_last=True)
    links.send(alive, 1000, is_last=True)
    time.call_in(1.0, lambda: links.cancel(dead))  # half of either is sent
    time.call_in(1.1, lambda: links.cancel(dead))
    time.environment.run()

    assert arrived == pytest.approx([1.5 + LATENCY_S])
