"""The file of keys: what is written is read, nobody else reads it, and everything wrong with one has an answer."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from diptych.core.api_keys import ApiKey, KeyLimits, hash_key
from diptych.core.errors import ConfigError
from diptych.frontend.auth.key_file import changing_key_file, new_cache_salt, read_key_file

HASH = hash_key("dk-alice")
GOOD = f'[keys.alice]\nhash = "{HASH}"\ncache_salt = "0123456789abcdef"\n'


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.toml"


def key(name: str, **more: bool | KeyLimits) -> ApiKey:
    return ApiKey(name=name, hash=hash_key(name), cache_salt=new_cache_salt(), **more)  # type: ignore[arg-type]


def test_what_is_written_is_read(path: Path) -> None:
    limits = KeyLimits(requests_per_minute=6, max_concurrent=2, tokens_per_minute=10**6)
    written = [key("alice"), key("bob-2", limits=limits), key("eve_3", is_admin=True)]
    with changing_key_file(path) as keys:
        keys.extend(written)
    assert read_key_file(path) == written
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["keys.toml"], "nothing else is left"


def test_no_key_is_in_the_file(path: Path) -> None:
    with changing_key_file(path) as keys:
        keys.append(ApiKey(name="alice", hash=hash_key("dk-secret"), cache_salt=new_cache_salt()))
    assert "dk-secret" not in path.read_text()


def test_who_changes_it_at_the_same_time_waits(path: Path) -> None:
    def add(number: int) -> None:
        with changing_key_file(path) as keys:
            keys.append(key(f"k{number}"))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(24)))
    assert {found.name for found in read_key_file(path)} == {f"k{number}" for number in range(24)}


def test_an_error_while_changing_leaves_it_as_it_was(path: Path) -> None:
    write(path, GOOD)
    with pytest.raises(RuntimeError), changing_key_file(path) as keys:
        keys.clear()
        raise RuntimeError
    assert [found.name for found in read_key_file(path)] == ["alice"]


def test_an_empty_file_has_no_keys(path: Path) -> None:
    assert read_key_file(write(path, "")) == []


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("no toml at all", "is no TOML"),
        ("\udcff", "is no TOML"),
        (GOOD + GOOD, "two keys of one name"),
        (GOOD + GOOD.replace("alice", "bob"), "alice and bob are the same key"),
        (GOOD + 'colour = "red"\n', "alice: unknown field `colour`; known are admin, cache_salt, hash"),
        ("[key.alice]\n", "unknown entry `key`; keys are tables such as [keys.alice]"),
        ("keys = 3\n", "`keys` is no table"),
        ("[keys]\nalice = 3\n", "key alice is no table"),
        (GOOD.replace("alice", '"a b"'), "a key's name has 1 to 64 letters, digits, - and _, unlike 'a b'"),
        (GOOD.replace(HASH, "dk-alice"), "alice: `hash` must be 64 hexadecimal digits"),
        (GOOD.replace("hash =", "hash = 1 #"), "alice: `hash` must be"),
        (GOOD.replace("0123456789abcdef", "short"), "alice: `cache_salt` must be 16"),
        (GOOD + "admin = 1\n", "alice: `admin` is true or false"),
        (GOOD + "max_concurrent = 0\n", "alice: `max_concurrent` is a whole number from 1 on"),
        (GOOD + "max_concurrent = true\n", "alice: `max_concurrent` is a whole number from 1 on"),
        (GOOD + 'tokens_per_minute = "many"\n', "alice: `tokens_per_minute` is a whole number"),
        (GOOD + "x" * 5_000_000, "larger than 4000000 bytes"),
    ],
)
def test_what_is_wrong_is_said(path: Path, text: str, complaint: str) -> None:
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    path.chmod(0o600)
    with pytest.raises(ConfigError) as raised:
        read_key_file(path)
    assert complaint in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_a_file_that_others_may_read_or_change_is_refused(path: Path, mode: int) -> None:
    with pytest.raises(ConfigError, match=rf"\(mode {mode:04o}\): run chmod 600 "):
        read_key_file(write(path, GOOD, mode))


def test_what_is_not_there_or_no_file_is_said(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the key file .*: No such file"):
        read_key_file(path)
    with pytest.raises(ConfigError, match="Is a directory"):
        read_key_file(path.parent)
    with pytest.raises(ConfigError, match="cannot write the key file"), changing_key_file(path / "sub" / "keys"):
        pass


def test_a_pipe_is_no_key_file(path: Path) -> None:
    os.mkfifo(path, 0o600)
    with pytest.raises(ConfigError, match="is no file"):
        read_key_file(path)
