"""Whose a key is, also while the file changes under a running server."""

import logging
from pathlib import Path

import pytest

from diptych.core.api_keys import ApiKey, KeyLimits, hash_key
from diptych.core.clock import VirtualClock
from diptych.core.errors import ConfigError
from diptych.frontend.auth.key_file import changing_key_file
from diptych.frontend.auth.key_ring import KeyRing
from diptych.frontend.errors import KeyLimitError
from diptych.frontend.watched_files import RECHECK_S

SALT = "0123456789abcdef"


def key_of(secret: str, limits: KeyLimits | None = None) -> ApiKey:
    return ApiKey(name=secret, hash=hash_key(secret), cache_salt=SALT, limits=limits or KeyLimits())


def write(path: Path, *keys: ApiKey) -> None:
    with changing_key_file(path) as written:
        written[:] = keys


def name_of(ring: KeyRing, secret: str) -> str | None:
    tenant = ring.find(secret)
    return None if tenant is None else tenant.key.name


def later(clock: VirtualClock) -> None:
    clock.sleep(RECHECK_S)


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.toml"


def test_keys_of_the_start_and_of_the_file_open(path: Path, clock: VirtualClock) -> None:
    write(path, key_of("filed"))
    ring = KeyRing([key_of("fixed")], path, clock)
    assert [name_of(ring, secret) for secret in ("fixed", "filed", "other", "")] == ["fixed", "filed", None, None]


def test_a_changed_file_takes_effect_after_a_second(path: Path, clock: VirtualClock) -> None:
    write(path, key_of("old"))
    ring = KeyRing([], path, clock)
    write(path, key_of("new"))
    assert name_of(ring, "new") is None
    later(clock)
    assert (name_of(ring, "new"), name_of(ring, "old")) == ("new", None)


def test_the_last_key_may_be_revoked(path: Path, clock: VirtualClock) -> None:
    write(path, key_of("only"))
    ring = KeyRing([], path, clock)
    write(path)
    later(clock)
    assert name_of(ring, "only") is None


@pytest.mark.parametrize("harm", ["broken", "readable", "gone"])
def test_a_file_that_cannot_be_used_any_more_changes_nothing_and_is_told_once(
    path: Path, clock: VirtualClock, caplog: pytest.LogCaptureFixture, harm: str
) -> None:
    write(path, key_of("kept"))
    ring = KeyRing([], path, clock)
    if harm == "broken":
        path.write_text("nonsense")
    elif harm == "readable":
        path.chmod(0o644)
    else:
        path.unlink()
    with caplog.at_level(logging.INFO):
        for _ in range(5):
            later(clock)
            assert name_of(ring, "kept") == "kept"
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("the keys stay as they were: ")
    path.unlink(missing_ok=True)
    write(path, key_of("mended"))
    later(clock)
    assert name_of(ring, "mended") == "mended"


def test_a_file_that_cannot_be_used_at_the_start_is_an_error(path: Path, clock: VirtualClock) -> None:
    with pytest.raises(ConfigError):
        KeyRing([], path, clock)


def test_what_a_key_has_used_stays_counted_when_the_file_changes(path: Path, clock: VirtualClock) -> None:
    write(path, key_of("busy", KeyLimits(requests_per_minute=1)))
    ring = KeyRing([], path, clock)
    tenant = ring.find("busy")
    assert tenant is not None
    with tenant.requesting():
        pass
    write(path, key_of("busy", KeyLimits(requests_per_minute=2)), key_of("other"))
    later(clock)
    again = ring.find("busy")
    assert again is tenant
    with pytest.raises(KeyLimitError), again.requesting(), again.requesting():
        pass


def test_a_key_that_is_made_anew_under_a_name_replaces_the_old_one(path: Path, clock: VirtualClock) -> None:
    write(path, key_of("name"))
    ring = KeyRing([], path, clock)
    write(path, ApiKey(name="name", hash=hash_key("another"), cache_salt=SALT))
    later(clock)
    assert (name_of(ring, "name"), name_of(ring, "another")) == (None, "name")
