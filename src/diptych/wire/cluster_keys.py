"""The keys of a cluster's machines: who may connect to whom, on every socket between them (CURVE, as in ZeroMQ).

    DIR/head/    head.key_secret, and nodes/NAME.key of every machine that may join     stays on the router's machine
    DIR/NAME/    node.key_secret, head.key                                              goes to that machine

A machine has its own secret key and the router's public one, so that it talks to no other; the router's machine has its
secret key and everybody's public ones. Secret files are readable by their owner alone, and refused otherwise.

See: ZeroMQ RFC 26, CurveZMQ; the files are those of zmq.auth, `ZPL`.
"""

import hashlib
import re
import stat
from pathlib import Path
from typing import NamedTuple

import zmq
import zmq.auth

from diptych.core.addresses import HEAD_NODE
from diptych.core.errors import ConfigError
from diptych.core.whole_file import OWNER_ALONE, write_whole

HEAD_FOLDER = str(HEAD_NODE)
NODES_FOLDER = "nodes"
HEAD_PUBLIC, HEAD_SECRET, NODE_SECRET = "head.key", "head.key_secret", "node.key_secret"
FOLDER_MODE = 0o700
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,34}[a-z0-9])?")


class KeyPair(NamedTuple):
    """In Z85, 40 characters each."""

    public: bytes
    secret: bytes

    def __repr__(self) -> str:
        """Return it without the secret, which must not come into any log."""
        return f"KeyPair({self.public!r})"


class NodeKeys(NamedTuple):
    """What a machine that joins needs."""

    own: KeyPair
    head_public: bytes


def create_keys(folder: Path, nodes: list[str]) -> list[str]:
    """Make the head's keys if there are none, and those of machines that have none; return the names of the new ones.

    Raises: ConfigError if a name is none, or the folder cannot be written.
    """
    for name in nodes:
        if NAME.fullmatch(name) is None or name == HEAD_NODE:
            raise ConfigError(f"{name!r} cannot be a machine's name: a-z, 0-9 and - in between, and not {HEAD_NODE}")
    try:
        return _create_keys(folder, nodes)
    except OSError as error:
        raise ConfigError(f"cannot write keys to {folder}: {error.strerror}") from None


def _create_keys(folder: Path, nodes: list[str]) -> list[str]:
    head = folder / HEAD_FOLDER
    for path in (folder, head, head / NODES_FOLDER):
        path.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    if not (head / HEAD_SECRET).exists():
        _write_pair(head / HEAD_SECRET, KeyPair(*zmq.curve_keypair()))
    head_public = _read_secret(head / HEAD_SECRET).public
    new = [name for name in nodes if not (head / NODES_FOLDER / f"{name}.key").exists()]
    for name in new:
        own = KeyPair(*zmq.curve_keypair())
        (folder / name).mkdir(mode=FOLDER_MODE, exist_ok=True)
        _write_pair(folder / name / NODE_SECRET, own)
        _write_public(folder / name / HEAD_PUBLIC, head_public)
        _write_public(head / NODES_FOLDER / f"{name}.key", own.public)  # last: now it is let in
    return new


def read_head_keys(folder: Path) -> tuple[KeyPair, Path]:
    """Return the router's own keys and the folder of those who may join; `folder` is DIR or DIR/head.

    Raises: ConfigError.
    """
    head = folder / HEAD_FOLDER if (folder / HEAD_FOLDER).is_dir() else folder
    return _read_secret(head / HEAD_SECRET), head / NODES_FOLDER


def read_allowed(folder: Path) -> dict[bytes, str]:
    """Return the public keys of those who may join, with their names. Raises: ConfigError."""
    try:
        paths = sorted(folder.glob("*.key"))
        return {_load(path)[0]: path.stem for path in paths}
    except OSError as error:
        raise ConfigError(f"cannot read the keys in {folder}: {error.strerror}") from None


def read_node_keys(folder: Path) -> NodeKeys:
    """Return the keys of a machine that joins. Raises: ConfigError."""
    own = _read_secret(folder / NODE_SECRET)
    try:
        return NodeKeys(own, _load(folder / HEAD_PUBLIC)[0])
    except OSError as error:
        raise ConfigError(f"cannot read {folder / HEAD_PUBLIC}: {error.strerror}") from None


def _read_secret(path: Path) -> KeyPair:
    try:
        mode = path.stat().st_mode
        public, secret = _load(path)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; `diptych keys` makes keys") from None
    if stat.S_IMODE(mode) & 0o077:
        raise ConfigError(f"others may read {path}: chmod 600 it, or make new keys if they have")
    if secret is None:
        raise ConfigError(f"{path} has no secret key in it; `diptych keys` makes keys")
    return KeyPair(public, secret)


def transfer_secret(head: KeyPair) -> str:
    """Return what workers of a cluster prove to each other that they know: hex digits, the same in all its lives."""
    return hashlib.blake2b(b"KV between machines", key=zmq.utils.z85.decode(head.secret), digest_size=32).hexdigest()


def _load(path: Path) -> tuple[bytes, bytes | None]:
    """Raises: OSError; ConfigError if it is no file of keys."""
    path.stat()  # zmq.auth would say less
    try:
        public, secret = zmq.auth.load_certificate(path)
    except (ValueError, UnicodeDecodeError):
        raise ConfigError(f"{path} is no file of keys; `diptych keys` makes them") from None
    if any(key is not None and not _is_key(key) for key in (public, secret)):
        raise ConfigError(f"{path} is damaged: its keys are none; `diptych keys` makes new ones")
    return public, secret


def _is_key(key: bytes) -> bool:
    try:
        return len(zmq.utils.z85.decode(key)) == 32  # noqa: PLR2004  bytes of a key
    except (KeyError, ValueError):
        return False


def _write_pair(path: Path, pair: KeyPair) -> None:
    text = f'metadata\ncurve\n    public-key = "{pair.public.decode()}"\n    secret-key = "{pair.secret.decode()}"\n'
    write_whole(path, text.encode(), OWNER_ALONE)


def _write_public(path: Path, public: bytes) -> None:
    write_whole(path, f'metadata\ncurve\n    public-key = "{public.decode()}"\n'.encode(), OWNER_ALONE)
