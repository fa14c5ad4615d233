"""What a block's content is called: a hash of its tokens and of all tokens before it.

The router hashes a prompt once to ask which worker holds its beginning; a decode worker hashes blocks as they fill, so
that the next request with the same beginning finds them. Invariants: equal hashes mean equal tokens from position 0 to
the block's end, under the same model, KV layout, block size and cache salt; a partly filled block has no hash.
"""

import hashlib
from array import array
from collections.abc import Sequence

from diptych.core.errors import InvalidRequestError
from diptych.core.ids import BlockHash

HASH_BYTES = 16


class BlockHasher:
    """Names blocks for one model, KV layout and cache salt. Immutable; may be shared by threads."""

    def __init__(self, model_key: str, layout_fingerprint: str, cache_salt: str = "", *, block_size: int) -> None:
        if block_size < 1:
            raise AssertionError(f"a block holds at least one token, not {block_size}")
        self.block_size = block_size
        self._model_key = model_key
        self._layout_fingerprint = layout_fingerprint
        # repr quotes each part, so no two different settings spell the same text.
        settings = repr((model_key, layout_fingerprint, cache_salt, block_size)).encode("utf-8", "surrogatepass")
        # BLAKE2's personalization enters every hash at no cost, unlike its key, which takes a compression of its own.
        self._root = hashlib.blake2b(settings, digest_size=HASH_BYTES).digest()

    def salted(self, cache_salt: str) -> "BlockHasher":
        """Return the hasher of another cache salt: requests share blocks only with those of the same salt."""
        return BlockHasher(self._model_key, self._layout_fingerprint, cache_salt, block_size=self.block_size)

    def hash_blocks(self, token_ids: Sequence[int]) -> list[BlockHash]:
        """Return one hash for each full block of `token_ids`; the tokens after the last full block have none.

        Raises: InvalidRequestError if a token id does not fit 32 bits.
        """
        block_bytes = 4 * self.block_size
        tokens = _token_bytes(token_ids)
        hashes: list[BlockHash] = []
        parent = self._root
        for start in range(0, len(tokens) - block_bytes + 1, block_bytes):
            parent = self._hash(parent, tokens[start : start + block_bytes])
            hashes.append(BlockHash(parent))
        return hashes

    def extend(self, parent: BlockHash | None, block_token_ids: Sequence[int]) -> BlockHash:
        """Return the hash of the block of `block_token_ids` that follows the block called `parent` (None: the first).

        Raises: InvalidRequestError if a token id does not fit 32 bits.
        """
        if len(block_token_ids) != self.block_size:
            raise AssertionError(f"only full blocks have hashes: {len(block_token_ids)} tokens of {self.block_size}")
        return BlockHash(self._hash(self._root if parent is None else parent, _token_bytes(block_token_ids)))

    def _hash(self, parent: bytes, block_tokens: bytes) -> bytes:
        return hashlib.blake2b(parent + block_tokens, digest_size=HASH_BYTES, person=self._root).digest()


def _token_bytes(token_ids: Sequence[int]) -> bytes:
    """Return four bytes a token."""
    try:
        return array("I", token_ids).tobytes()
    except OverflowError:
        raise InvalidRequestError("token ids must lie between 0 and 2^32 - 1") from None
