"""The index against a plain model, with gaps, echoes, restarts and deaths."""

from hypothesis import given
from hypothesis import strategies as st

from diptych.core.ids import BlockHash, WorkerId
from diptych.core.messages import CacheChange
from diptych.router.prefix_index import PrefixIndex

HASHES = [BlockHash(bytes([number])) for number in range(6)]
DECODE_0, DECODE_1 = WorkerId("decode-0"), WorkerId("decode-1")


def change(sequence: int, stored: str = "", removed: str = "") -> CacheChange:
    def pick(digits: str) -> list[BlockHash]:
        return [HASHES[int(digit)] for digit in digits]

    return CacheChange(sequence=sequence, stored=pick(stored), removed=pick(removed))


def test_matches_the_longest_leading_run_of_each_worker() -> None:
    index = PrefixIndex()
    index.on_cache_change(DECODE_0, 1, change(1, stored="0123"))
    index.on_cache_change(DECODE_1, 1, change(1, stored="0134"))
    assert index.match_blocks(HASHES) == {DECODE_0: 4, DECODE_1: 2}
    assert index.match_blocks(HASHES[1:]) == {DECODE_0: 3, DECODE_1: 1}
    assert index.match_blocks(HASHES[5:]) == {}
    assert index.match_blocks([]) == {}
    index.on_cache_change(DECODE_0, 1, change(2, removed="0"))
    assert index.match_blocks(HASHES) == {DECODE_1: 2}


def test_a_gap_forgets_what_may_be_false() -> None:
    index = PrefixIndex()
    index.on_cache_change(DECODE_0, 1, change(1, stored="012"))
    index.on_cache_change(DECODE_0, 1, change(3, stored="01"))
    assert index.match_blocks(HASHES) == {DECODE_0: 2}
    assert index.num_blocks_of(DECODE_0) == 2
    index.on_cache_change(DECODE_0, 1, change(2, removed="0"))  # too late to count
    assert index.match_blocks(HASHES) == {DECODE_0: 2}


def test_a_new_life_starts_empty_and_the_old_one_is_not_heard() -> None:
    index = PrefixIndex()
    index.on_cache_change(DECODE_0, 1, change(1, stored="012"))
    index.on_cache_change(DECODE_0, 2, change(1, stored="0"))
    index.on_cache_change(DECODE_0, 1, change(2, stored="12"))
    assert index.match_blocks(HASHES) == {DECODE_0: 1}


def test_a_worker_that_is_gone_holds_nothing_whatever_still_arrives() -> None:
    index = PrefixIndex()
    index.on_cache_change(DECODE_0, 1, change(1, stored="0"))
    index.on_worker_gone(DECODE_0, 1)
    index.on_cache_change(DECODE_0, 1, change(2, stored="01"))
    index.on_worker_gone(DECODE_1, 4)  # it dies before it has said a word
    index.on_cache_change(DECODE_1, 4, change(1, stored="01"))
    assert index.match_blocks(HASHES) == {}
    index.on_cache_change(DECODE_0, 2, change(1, stored="0"))
    index.on_worker_gone(DECODE_0, 1)  # said twice, the second time late
    assert index.match_blocks(HASHES) == {DECODE_0: 1}


events = st.tuples(
    st.sampled_from([DECODE_0, DECODE_1]),
    st.integers(1, 3),  # incarnation
    st.integers(1, 5),  # sequence
    st.sets(st.sampled_from(HASHES)),
    st.sets(st.sampled_from(HASHES)),
    st.booleans(),  # the worker dies instead
)


@given(st.lists(events, max_size=30))
def test_never_holds_more_than_the_newest_unbroken_run_of_changes(
    script: list[tuple[WorkerId, int, int, set[BlockHash], set[BlockHash], bool]],
) -> None:
    index = PrefixIndex()
    lives: dict[WorkerId, tuple[int, int, set[BlockHash], bool]] = {}
    for worker_id, incarnation, sequence, stored, removed, is_death in script:
        if is_death:
            index.on_worker_gone(worker_id, incarnation)
        else:
            index.on_cache_change(
                worker_id, incarnation, CacheChange(sequence=sequence, stored=[*stored], removed=[*removed])
            )
        life = lives.get(worker_id, (0, 0, set(), False))
        if incarnation > life[0]:
            life = (incarnation, 0, set(), False)
        if incarnation == life[0] and is_death:
            life = (incarnation, life[1], set(), True)
        elif incarnation == life[0] and not life[3] and sequence > life[1]:
            known = life[2] if sequence == life[1] + 1 else set()
            life = (incarnation, sequence, (known - removed) | stored, False)
        lives[worker_id] = life
        index.check_invariants()
        for one, (_, _, held, _) in lives.items():
            run = next((count for count, h in enumerate(HASHES) if h not in held), len(HASHES))
            assert index.match_blocks(HASHES).get(one, 0) == run
            assert index.num_blocks_of(one) == len(held)
