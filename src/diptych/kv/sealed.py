"""Entries in shared memory that can be told from half-written ones: a cache line each, the last word a checksum.

A process may be killed between any two bytes of a write. Its entry then fails its checksum, and readers treat it as not
there. Invariants: an all-zero entry (fresh memory) fails too; a change confined to one word never goes unnoticed, and
any other with a probability of 2^-64.
"""

import numpy as np
import numpy.typing as npt

ENTRY_WORDS = 8
ENTRY_BYTES = 8 * ENTRY_WORDS

Entries = npt.NDArray[np.uint64]
"""[..., 8] words; a word is 64 bits, and the last one is the checksum of the other seven."""


def _constants() -> npt.NDArray[np.uint64]:
    """Return one odd constant a word, so that equal words in swapped places do not cancel out."""
    golden_ratio = 0x9E3779B97F4A7C15
    constants = np.array([(i * golden_ratio | 1) % 2**64 for i in range(1, ENTRY_WORDS)], dtype=np.uint64)
    constants.flags.writeable = False
    return constants


_WORD_CONSTANTS = _constants()
# Odd multipliers and shifts make the mixing of one word reversible: two different words never mix to the same value.
_FIRST_MULTIPLIER = np.uint64(0xBF58476D1CE4E5B9)
_SECOND_MULTIPLIER = np.uint64(0x94D049BB133111EB)
_FIRST_SHIFT = np.uint64(31)
_SECOND_SHIFT = np.uint64(29)


def checksums(entries: Entries) -> npt.NDArray[np.uint64]:
    """Return [...]: what the last word of each entry should be."""
    mixed = entries[..., :-1] ^ _WORD_CONSTANTS
    mixed *= _FIRST_MULTIPLIER
    mixed ^= mixed >> _FIRST_SHIFT
    mixed *= _SECOND_MULTIPLIER
    mixed ^= mixed >> _SECOND_SHIFT
    total: npt.NDArray[np.uint64] = mixed.sum(axis=-1)
    return total


def is_sealed(entries: Entries) -> npt.NDArray[np.bool_]:
    """Return [...]: which entries have been written to their end."""
    is_complete: npt.NDArray[np.bool_] = entries[..., -1] == checksums(entries)
    return is_complete


def write_sealed(target: Entries, index: tuple[npt.NDArray[np.intp], ...], entries: Entries) -> None:
    """Write `entries` to `target[index]`, their checksums last; the last word of `entries` does not matter."""
    entries[..., -1] = 0
    target[index] = entries
    target[..., -1][index] = checksums(entries)
