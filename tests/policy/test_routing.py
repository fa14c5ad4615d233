"""The choice of workers: never one that is not accepting, never more work to the busier, whatever the order."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from diptych.core.ids import WorkerId
from diptych.policy.routing import (
    DecodeLoad,
    PrefillLoad,
    RoutingWeights,
    choose_decode_worker,
    choose_prefill_path,
    choose_prefill_worker,
)

counts = st.integers(0, 200)
decode_load_sets = st.lists(
    st.builds(
        DecodeLoad,
        worker_id=st.integers(0, 9).map(lambda number: WorkerId(f"decode-{number}")),
        is_accepting=st.booleans(),
        is_mixed=st.booleans(),
        num_blocks=counts,
        num_used_blocks=counts,
        num_sequences=counts,
        queued_prefill_blocks=counts,
    ),
    max_size=6,
    unique_by=lambda load: load.worker_id,
)
prefill_load_sets = st.lists(
    st.builds(
        PrefillLoad,
        worker_id=st.integers(0, 9).map(lambda number: WorkerId(f"prefill-{number}")),
        is_accepting=st.booleans(),
        queued_tokens=st.integers(0, 10_000),
        tokens_per_s=st.sampled_from([0.0, 10.0, 500.0, 1000.0]),
    ),
    max_size=6,
    unique_by=lambda load: load.worker_id,
)


def idle_decode(number: int, **changes: object) -> DecodeLoad:
    load = DecodeLoad(
        worker_id=WorkerId(f"decode-{number}"),
        is_accepting=True,
        is_mixed=False,
        num_blocks=100,
        num_used_blocks=0,
        num_sequences=0,
        queued_prefill_blocks=0,
    )
    return replace(load, **changes)  # type: ignore[arg-type]


def idle_prefill(number: int, queued_tokens: int = 0, tokens_per_s: float = 1000.0) -> PrefillLoad:
    return PrefillLoad(WorkerId(f"prefill-{number}"), True, queued_tokens, tokens_per_s)


@given(decode_load_sets, counts, st.dictionaries(st.integers(0, 9).map(lambda n: WorkerId(f"decode-{n}")), counts))
def test_decode_choice_is_an_accepting_worker_if_there_is_one(
    loads: list[DecodeLoad], num_prompt_blocks: int, matched: dict[WorkerId, int]
) -> None:
    chosen = choose_decode_worker(num_prompt_blocks, matched, loads)
    accepting = {load.worker_id for load in loads if load.is_accepting}
    assert chosen in accepting if accepting else chosen is None


@given(decode_load_sets, counts, st.randoms(use_true_random=False))
def test_decode_choice_does_not_depend_on_the_order(loads: list[DecodeLoad], num_blocks: int, random: object) -> None:
    shuffled = list(loads)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert choose_decode_worker(num_blocks, {}, loads) == choose_decode_worker(num_blocks, {}, shuffled)


@given(
    decode_load_sets,
    counts,
    st.sampled_from(["num_used_blocks", "num_sequences", "queued_prefill_blocks"]),
    st.integers(0, 9),
    st.integers(1, 500),
)
def test_more_load_never_attracts_requests(
    loads: list[DecodeLoad], num_blocks: int, field: str, number: int, more: int
) -> None:
    worker_id = WorkerId(f"decode-{number}")
    heavier = [
        replace(load, **{field: getattr(load, field) + more}) if load.worker_id == worker_id else load for load in loads
    ]
    before, after = choose_decode_worker(num_blocks, {}, loads), choose_decode_worker(num_blocks, {}, heavier)
    assert before in {after, worker_id}


@given(decode_load_sets, counts, st.integers(0, 9), counts)
def test_a_longer_prefix_never_repels_requests(
    loads: list[DecodeLoad], num_blocks: int, number: int, num_matched: int
) -> None:
    worker_id = WorkerId(f"decode-{number}")
    before = choose_decode_worker(num_blocks, {}, loads)
    after = choose_decode_worker(num_blocks, {worker_id: num_matched}, loads)
    assert after in {before, worker_id}


def test_decode_choice_weighs_prefix_against_load() -> None:
    holder, idle = idle_decode(0, num_sequences=1, num_used_blocks=3), idle_decode(1)
    assert choose_decode_worker(10, {holder.worker_id: 8}, [holder, idle]) == holder.worker_id
    assert choose_decode_worker(10, {holder.worker_id: 6}, [holder, idle]) == idle.worker_id
    light = RoutingWeights(used_block=0.0, sequence=1.0)
    assert choose_decode_worker(10, {holder.worker_id: 6}, [holder, idle], light) == holder.worker_id


def test_full_workers_come_last_and_ties_go_to_the_lowest_id() -> None:
    full = idle_decode(0, num_blocks=5)
    busy = idle_decode(1, num_sequences=20, num_used_blocks=50)
    assert choose_decode_worker(10, {}, [full, busy]) == busy.worker_id
    assert choose_decode_worker(10, {}, [full]) == full.worker_id
    assert choose_decode_worker(10, {}, [idle_decode(3), idle_decode(2)]) == "decode-2"


@given(prefill_load_sets, st.integers(1, 5000), st.randoms(use_true_random=False))
def test_prefill_choice_is_accepting_and_first_to_be_done(
    loads: list[PrefillLoad], num_tokens: int, random: object
) -> None:
    chosen = choose_prefill_worker(num_tokens, loads)
    accepting = {load.worker_id: load.predict_ttft_s(num_tokens) for load in loads if load.is_accepting}
    if not accepting:
        assert chosen is None
        return
    assert chosen is not None
    assert accepting[chosen] == min(accepting.values())
    random.shuffle(loads)  # type: ignore[attr-defined]
    assert choose_prefill_worker(num_tokens, loads) == chosen


def test_prefill_queue_is_measured_in_seconds() -> None:
    fast, slow = idle_prefill(0, queued_tokens=1500, tokens_per_s=2000.0), idle_prefill(1, 500, 500.0)
    assert choose_prefill_worker(100, [fast, slow]) == fast.worker_id
    unmeasured = idle_prefill(2, 0, 0.0)
    assert choose_prefill_worker(100, [unmeasured, slow]) == slow.worker_id
    assert choose_prefill_worker(100, [unmeasured]) == unmeasured.worker_id


def test_prefill_path() -> None:
    decode, mixed = idle_decode(0), idle_decode(1, is_mixed=True)
    prefills = [idle_prefill(0)]
    assert choose_prefill_path(33, decode, prefills, 32) == "prefill-0"
    assert choose_prefill_path(32, decode, prefills, 32) is None
    assert choose_prefill_path(1, decode, prefills, 0) == "prefill-0", "0 tokens here means none, not any"
    assert choose_prefill_path(3000, mixed, prefills, 32) is None
    assert choose_prefill_path(3000, decode, [], 32) is None
    assert choose_prefill_path(3000, decode, [replace(prefills[0], is_accepting=False)], 32) is None
