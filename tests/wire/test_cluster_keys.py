"""Keys of a cluster: made once, readable by their owner alone, refused otherwise."""

from pathlib import Path

import pytest

from diptych.core.errors import ConfigError
from diptych.wire.cluster_keys import create_keys, read_allowed, read_head_keys, read_node_keys


def test_each_machine_gets_its_own(tmp_path: Path) -> None:
    assert create_keys(tmp_path, ["a", "b"]) == ["a", "b"]
    own, allowed = read_head_keys(tmp_path)
    one, other = read_node_keys(tmp_path / "a"), read_node_keys(tmp_path / "b")
    assert one.head_public == other.head_public == own.public
    assert read_allowed(allowed) == {one.own.public: "a", other.own.public: "b"}
    assert len({own.secret, one.own.secret, other.own.secret}) == 3
    assert own.secret.decode() not in repr(own)


def test_what_is_there_stays(tmp_path: Path) -> None:
    create_keys(tmp_path, ["a"])
    before = read_head_keys(tmp_path), read_node_keys(tmp_path / "a")
    assert create_keys(tmp_path, ["a", "b"]) == ["b"]
    assert (read_head_keys(tmp_path), read_node_keys(tmp_path / "a")) == before


def test_the_heads_folder_alone_is_enough(tmp_path: Path) -> None:
    create_keys(tmp_path, ["a"])
    assert read_head_keys(tmp_path / "head") == read_head_keys(tmp_path)


def test_nobody_else_may_read_them(tmp_path: Path) -> None:
    create_keys(tmp_path / "keys", ["a"])
    made = list((tmp_path / "keys").rglob("*"))
    assert {path.stat().st_mode & 0o777 for path in made if path.is_file()} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in made if path.is_dir()} == {0o700}
    secret = tmp_path / "keys/a/node.key_secret"
    secret.chmod(0o640)
    with pytest.raises(ConfigError, match=r"others may read .*chmod 600"):
        read_node_keys(tmp_path / "keys/a")


@pytest.mark.parametrize("name", ["head", "A", "a/b", "..", "", "a_b", "-a", "a" * 37])
def test_names_that_are_none(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be a machine's name"):
        create_keys(tmp_path / "keys", [name])
    assert not (tmp_path / "keys").exists()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is no file of keys"),
        (b'public-key = "short"\nsecret-key = "short"\n', "is damaged"),
        (b'public-key = "' + b"a" * 40 + b'"\n', "has no secret key"),
    ],
)
def test_files_that_are_none(tmp_path: Path, content: bytes, complaint: str) -> None:
    create_keys(tmp_path, ["a"])
    (tmp_path / "a/node.key_secret").write_bytes(content)
    with pytest.raises(ConfigError, match=complaint):
        read_node_keys(tmp_path / "a")


def test_no_keys_at_all(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`diptych keys` makes keys"):
        read_head_keys(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot write keys"):
        create_keys(tmp_path / "file", ["a"])
