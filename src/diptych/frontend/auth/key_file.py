"""The file of API keys: TOML, a table a key, hashes only.

    [keys.alice]
    hash = "..."                 BLAKE2b-256 of the key, hexadecimal
    cache_salt = "..."           random; keys with the same one share cached prefixes
    requests_per_minute = 60     this and the rest may be left out
    max_concurrent = 4
    tokens_per_minute = 100000
    admin = true

Invariant: only its owner can read it, and whoever reads it sees one whole version of it, never half of one.
"""

import fcntl
import os
import re
import secrets
import stat
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diptych.core.api_keys import HASH_BYTES, ApiKey, KeyLimits
from diptych.core.errors import ConfigError
from diptych.core.whole_file import OWNER_ALONE, write_whole

MAX_FILE_BYTES = 4_000_000
MAX_LIMIT = 10**12
SALT_BYTES = 16
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HASH = re.compile(rf"[0-9a-f]{{{2 * HASH_BYTES}}}")
_SALT = re.compile(r"[0-9A-Za-z_-]{16,128}")
_LIMITS = KeyLimits.__struct_fields__
_FIELDS = frozenset({"hash", "cache_salt", "admin", *_LIMITS})
_HEAD = "# Keys of Diptych's API, hashed. Made and changed by `diptych key`, which keeps no comments but this one.\n"


def check_name(name: str) -> str:
    """Return a key's name.

    Raises: ConfigError if it cannot be one.
    """
    if _NAME.fullmatch(name) is None:
        raise ConfigError(f"a key's name has 1 to 64 letters, digits, - and _, unlike {name!r}")
    return name


def new_cache_salt() -> str:
    """Return a salt that no other key has."""
    return secrets.token_hex(SALT_BYTES)


def read_key_file(path: Path) -> list[ApiKey]:
    """Return the keys of a file; perhaps none.

    Raises: ConfigError that says what is wrong with it.
    """
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            _check_private(path, os.fstat(file.fileno()))
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read the key file {path}: {error.strerror}") from None
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"the key file {path} is larger than {MAX_FILE_BYTES} bytes: it is no key file")
    return _parse(path, content)


def _open_at_once(path: str, flags: int) -> int:
    """Open a file, also a pipe that nobody writes to, which would keep the server waiting."""
    return os.open(path, flags | os.O_NONBLOCK)


def _check_private(path: Path, facts: os.stat_result) -> None:
    if not stat.S_ISREG(facts.st_mode):
        raise ConfigError(f"the key file {path} is no file")
    if facts.st_mode & 0o077:
        mode = stat.S_IMODE(facts.st_mode)
        raise ConfigError(f"others may read or change the key file {path} (mode {mode:04o}): run chmod 600 {path}")
    if facts.st_uid not in {os.geteuid(), 0}:
        raise ConfigError(f"the key file {path} belongs to another user")


def _parse(path: Path, content: bytes) -> list[ApiKey]:
    try:
        table = tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        # Two keys of one name end here too: TOML forbids to declare a table twice.
        raise ConfigError(f"the key file {path} is no TOML, or has two keys of one name: {error}") from None
    unknown = sorted(set(table) - {"keys"})
    if unknown:
        raise ConfigError(f"{path}: unknown entry `{unknown[0]}`; keys are tables such as [keys.alice]")
    tables = table.get("keys", {})
    if not isinstance(tables, dict):
        raise ConfigError(f"{path}: `keys` is no table; keys are tables such as [keys.alice]")
    keys = [_key(path, name, fields) for name, fields in tables.items()]
    by_hash: dict[str, str] = {}
    for key in keys:
        twin = by_hash.setdefault(key.hash, key.name)
        if twin != key.name:
            raise ConfigError(f"{path}: {twin} and {key.name} are the same key")
    return keys


def _key(path: Path, name: str, fields: object) -> ApiKey:
    where = f"{path}: key {name}"
    check_name(name)
    if not isinstance(fields, dict):
        raise ConfigError(f"{where} is no table")
    unknown = sorted(set(fields) - _FIELDS)
    if unknown:
        raise ConfigError(f"{where}: unknown field `{unknown[0]}`; known are {', '.join(sorted(_FIELDS))}")
    if not isinstance(fields.get("hash"), str) or _HASH.fullmatch(fields["hash"]) is None:
        raise ConfigError(f"{where}: `hash` must be {2 * HASH_BYTES} hexadecimal digits, as `diptych key create` makes")
    if not isinstance(fields.get("cache_salt"), str) or _SALT.fullmatch(fields["cache_salt"]) is None:
        raise ConfigError(f"{where}: `cache_salt` must be 16 letters and digits or more")
    if not isinstance(fields.get("admin", False), bool):
        raise ConfigError(f"{where}: `admin` is true or false")
    limits = {limit: _limit(where, limit, fields[limit]) for limit in _LIMITS if limit in fields}
    return ApiKey(
        name=name,
        hash=fields["hash"],
        cache_salt=fields["cache_salt"],
        is_admin=fields.get("admin", False),
        limits=KeyLimits(**limits),
    )


def _limit(where: str, limit: str, value: Any) -> int:
    if type(value) is not int or not 1 <= value <= MAX_LIMIT:
        raise ConfigError(f"{where}: `{limit}` is a whole number from 1 on; leave it out for no limit")
    return value


@contextmanager
def changing_key_file(path: Path) -> Iterator[list[ApiKey]]:
    """Hand out the keys of a file, to be changed in place, and write them when the block ends without an error.

    A file that is not there is made. Others who change it wait meanwhile.

    Raises: ConfigError if it cannot be read or written.
    """
    try:
        folder = os.open(path.absolute().parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"cannot write the key file {path}: {error.strerror}") from None
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        keys = read_key_file(path) if path.exists() else []
        yield keys
        _write(path, keys)
    finally:
        os.close(folder)


def _write(path: Path, keys: Sequence[ApiKey]) -> None:
    content = _HEAD + "".join(_written(key) for key in keys)
    try:
        write_whole(path, content.encode(), OWNER_ALONE)
    except OSError as error:
        raise ConfigError(f"cannot write the key file {path}, which is as it was: {error.strerror}") from None


def _written(key: ApiKey) -> str:
    """Write a key as TOML. Nothing needs escapes: names, hashes and salts have none but plain characters."""
    lines = [f"\n[keys.{key.name}]", f'hash = "{key.hash}"', f'cache_salt = "{key.cache_salt}"']
    lines += ["admin = true"] if key.is_admin else []
    given = {limit: getattr(key.limits, limit) for limit in _LIMITS}
    lines += [f"{limit} = {value}" for limit, value in given.items() if value is not None]
    return "\n".join(lines) + "\n"
