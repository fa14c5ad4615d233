"""The router's own count of what it has sent, and what a heartbeat adds to it."""

from hypothesis import given
from hypothesis import strategies as st

from diptych.core.ids import RequestId
from diptych.router.ledger import Counter, Ledger

A, B = RequestId("a"), RequestId("b")


def test_a_heartbeat_counts_for_what_is_not_ours() -> None:
    counter = Counter()
    counter.assign(A, 100)
    counter.on_report(30)  # older than what we sent: the worker has not seen all of it
    assert counter.total == 100
    counter.on_report(150)
    counter.release(A)
    assert counter.total == 50
    counter.assign(B, 10)
    assert counter.total == 60
    counter.on_report(0)
    assert counter.total == 10


operations = st.tuples(
    st.sampled_from(["assign", "grow", "release"]), st.sampled_from(["a", "b", "c"]), st.integers(0, 9)
)


@given(st.lists(operations))
def test_the_total_is_the_sum_of_the_entries(script: list[tuple[str, str, int]]) -> None:
    counter, expected = Counter(), dict[str, int]()
    for operation, name, amount in script:
        match operation:
            case "assign":
                counter.assign(RequestId(name), amount)
                expected[name] = amount
            case "grow":
                counter.grow(RequestId(name), amount)
                if name in expected:
                    expected[name] += amount
            case _:
                counter.release(RequestId(name))
                expected.pop(name, None)
        assert counter.total == sum(expected.values())
        assert len(counter) == len(expected)


def test_a_ledger_releases_everything_of_a_request() -> None:
    ledger = Ledger.empty()
    counters = (ledger.sequences, ledger.blocks, ledger.context_tokens, ledger.unread)
    for counter in counters:
        counter.assign(A, 7)
    ledger.assign_prompt(A, 7, 20)
    prompts = (ledger.prefill_tokens, ledger.prefill_pairs)
    assert [counter.total for counter in prompts] == [7, 7 * 20 + 7 * 8 / 2]
    assert ledger.num_requests == 1
    ledger.release(A)
    assert ledger.num_requests == 0
    assert [counter.total for counter in (*counters, *prompts)] == [0] * 6
