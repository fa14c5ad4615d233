import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.core.errors import InvalidRequestError
from diptych.kv.hashing import HASH_BYTES, BlockHasher

TOKENS = st.lists(st.integers(0, 2**32 - 1), max_size=40)


def hasher(model_key: str = "model", layout: str = "layout", salt: str = "", block_size: int = 4) -> BlockHasher:
    return BlockHasher(model_key, layout, salt, block_size=block_size)


def test_only_full_blocks_have_hashes() -> None:
    assert hasher().hash_blocks([]) == []
    assert hasher().hash_blocks([1, 2, 3]) == []
    hashes = hasher().hash_blocks(range(11))
    assert len(hashes) == 2
    assert all(len(block_hash) == HASH_BYTES for block_hash in hashes)


def test_hashes_are_the_same_in_every_process() -> None:
    # A router and its workers compare hashes, so the value itself is part of the protocol between versions.
    assert hasher().hash_blocks([1, 2, 3, 4])[0].hex() == "7168ad96d7e104572888b66f5e2d10dd"


def test_same_block_after_another_prefix_has_another_hash() -> None:
    first = hasher().hash_blocks([1, 2, 3, 4, 9, 9, 9, 9])
    second = hasher().hash_blocks([5, 6, 7, 8, 9, 9, 9, 9])
    assert set(first).isdisjoint(second)


def test_equal_blocks_in_a_row_differ() -> None:
    assert len(set(hasher().hash_blocks([7] * 40))) == 10


@pytest.mark.parametrize(
    "other",
    [
        hasher(model_key="model2"),
        hasher(layout="layout2"),
        hasher(salt="tenant"),
        hasher(model_key="modell", layout="ayout"),
        hasher(model_key="model', 'layout", layout=""),
    ],
    ids=["model", "layout", "salt", "shifted", "quoted"],
)
def test_settings_never_meet(other: BlockHasher) -> None:
    tokens = list(range(16))
    assert set(hasher().hash_blocks(tokens)).isdisjoint(other.hash_blocks(tokens))
    parent = hasher().hash_blocks(tokens)[0]
    assert hasher().extend(parent, tokens[4:8]) != other.extend(parent, tokens[4:8])


def test_block_sizes_never_meet() -> None:
    # Sizes 4 and 8 see the same tokens at the same ends.
    assert set(hasher(block_size=4).hash_blocks(range(32))).isdisjoint(hasher(block_size=8).hash_blocks(range(32)))


@given(TOKENS)
def test_extending_block_by_block_gives_the_same_chain(token_ids: list[int]) -> None:
    chain = hasher().hash_blocks(token_ids)
    parent = None
    for i, block_hash in enumerate(chain):
        parent = hasher().extend(parent, token_ids[4 * i : 4 * i + 4])
        assert parent == block_hash


@given(TOKENS, TOKENS)
def test_hashes_agree_exactly_as_far_as_tokens_do(first: list[int], second: list[int]) -> None:
    first_hashes, second_hashes = hasher().hash_blocks(first), hasher().hash_blocks(second)
    for i, (a, b) in enumerate(zip(first_hashes, second_hashes, strict=False)):
        end = 4 * (i + 1)
        assert (a == b) == (first[:end] == second[:end])


@pytest.mark.parametrize("token_id", [-1, 2**32])
def test_token_ids_beyond_32_bits_are_the_clients_error(token_id: int) -> None:
    with pytest.raises(InvalidRequestError, match="between 0 and"):
        hasher().hash_blocks([1, 2, 3, token_id])


def test_a_part_of_a_block_cannot_be_named() -> None:
    with pytest.raises(AssertionError, match="3 tokens of 4"):
        hasher().extend(None, [1, 2, 3])
    with pytest.raises(AssertionError, match="at least one token"):
        hasher(block_size=0)
