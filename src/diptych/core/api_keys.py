"""What a server knows of the keys that open it: their hashes and what each may ask for, never a key itself.

A key is 256 random bits, so nobody finds it from its hash by trying: a fast hash is enough, and a slow one (as
passwords need) would cost every request some 100 ms.
"""

import hashlib

import msgspec

HASH_BYTES = 32
_PURPOSE = b"diptych API key"
"""Makes the hash one of its own: it fits no other system's table of hashes."""


class KeyLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How much a key may ask for; None: as much as the server takes."""

    requests_per_minute: int | None = None
    max_concurrent: int | None = None
    """Requests whose answers are on their way."""
    tokens_per_minute: int | None = None
    """Of prompts and answers together, cached ones too."""


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key, without the key."""

    name: str
    hash: str
    """Hexadecimal BLAKE2b of the key."""
    cache_salt: str
    """Secret; only keys with the same one can meet in the prefix cache."""
    is_admin: bool = False
    """Whether it may also see what all others do: /diptych/status and /diptych/requests."""
    limits: KeyLimits = KeyLimits()


def hash_key(key: str) -> str:
    """Return what is kept of a key."""
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=HASH_BYTES, person=_PURPOSE).hexdigest()
