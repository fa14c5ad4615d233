import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.kv.sealed import ENTRY_BYTES, ENTRY_WORDS, Entries, checksums, is_sealed, write_sealed


def sealed(*words: int) -> Entries:
    """Return [1, 8] with these first words and a right checksum."""
    entry = np.zeros((1, ENTRY_WORDS), dtype=np.uint64)
    entry[0, : len(words)] = words
    target = np.zeros_like(entry)
    write_sealed(target, (np.array([0]),), entry)
    return target


def test_fresh_memory_is_not_sealed() -> None:
    assert not is_sealed(np.zeros((3, ENTRY_WORDS), dtype=np.uint64)).any()


def test_written_entries_are_sealed_and_others_untouched() -> None:
    target = np.zeros((4, 2, ENTRY_WORDS), dtype=np.uint64)
    entries = np.arange(16, dtype=np.uint64).reshape(2, ENTRY_WORDS)
    write_sealed(target, (np.array([1, 3]), np.array([0, 1])), entries)
    assert is_sealed(target).tolist() == [[False, False], [True, False], [False, False], [False, True]]
    assert target[3, 1, :-1].tolist() == list(range(8, 15))


@given(st.integers(0, ENTRY_BYTES - 1), st.integers(1, 255), st.lists(st.integers(0, 2**64 - 1), max_size=7))
def test_no_changed_byte_goes_unnoticed(position: int, change: int, words: list[int]) -> None:
    entry = sealed(*words)
    assert is_sealed(entry).all()
    entry.view(np.uint8)[0, position] ^= change
    assert not is_sealed(entry).any()


@pytest.mark.parametrize(("first", "second"), [((1, 2), (2, 1)), ((5, 0), (0, 5)), ((2**63, 2**63), (0, 0))])
def test_swapped_words_have_another_checksum(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    assert checksums(sealed(*first)) != checksums(sealed(*second))
