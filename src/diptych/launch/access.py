"""Who may talk to the server: keys, certificate, and a refusal to listen to the world without any.

Decided before anything is started or fetched, so that what is wrong is said at once.
"""

import ipaddress
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path

from diptych.core.api_keys import ApiKey, hash_key
from diptych.core.config import ServeConfig
from diptych.core.config_sources import API_KEY_VARIABLE
from diptych.core.errors import ConfigError
from diptych.frontend.auth.key_file import new_cache_salt, read_key_file
from diptych.frontend.tls import server_tls

MIN_KEY_CHARACTERS = 16
MAX_KEY_CHARACTERS = 256
ENVIRONMENT_NAME = "environment"
LAUNCHER_NAME = "launcher"
OWN_KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class Access:
    """What a server lets in."""

    api_keys: tuple[ApiKey, ...] = ()
    """Of the environment and of the launcher itself; empty where no keys are needed."""
    key_file: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    own_key: str | None = None
    """With which the launcher asks its own server; made anew at each start."""

    @property
    def scheme(self) -> str:
        """Return how URLs begin."""
        return "http" if self.tls_cert is None else "https"

    @property
    def needs_keys(self) -> bool:
        """Whether requests need an API key."""
        return self.own_key is not None


def plan_access(config: ServeConfig, api_key: str | None = None) -> Access:
    """Return what `config`, and a key from the environment, let in.

    Raises: ConfigError if a file cannot be used, or the server would serve strangers without a key.
    """
    if config.tls_cert is not None and config.tls_key is not None:
        server_tls(config.tls_cert, config.tls_key)
    if config.api_keys is not None and not read_key_file(config.api_keys) and api_key is None:
        how = f"`diptych key create NAME --file {config.api_keys}`"
        raise ConfigError(f"--api-keys: {config.api_keys} has no keys; make one with {how}")
    if config.api_keys is None and api_key is None:
        if not config.allow_unauthenticated and not is_loopback(config.host):
            raise ConfigError(
                f"--host {config.host} lets others in, and there are no API keys: make some (`diptych key create`) and "
                f"pass --api-keys FILE, or set {API_KEY_VARIABLE}, or say --allow-unauthenticated"
            )
        return Access(tls_cert=config.tls_cert, tls_key=config.tls_key)
    own_key = secrets.token_urlsafe(OWN_KEY_BYTES)
    keys = [_fixed_key(LAUNCHER_NAME, own_key)]
    if api_key is not None:
        keys.append(_fixed_key(ENVIRONMENT_NAME, checked_key(api_key)))
    # Absolute: the frontend reads it again and again, wherever it is.
    key_file = None if config.api_keys is None else config.api_keys.absolute()
    return Access(tuple(keys), key_file, config.tls_cert, config.tls_key, own_key)


def _fixed_key(name: str, key: str) -> ApiKey:
    # No name of a key in a file has a dot, so none of those is taken for this one.
    return ApiKey(name=f"diptych.{name}", hash=hash_key(key), cache_salt=new_cache_salt(), is_admin=True)


def checked_key(key: str) -> str:
    """Return a key that somebody has thought up.

    Raises: ConfigError, without the key in it, if clients could not send it or others might guess it.
    """
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(f"{API_KEY_VARIABLE} has spaces or other characters that no HTTP header may have in a key")
    if not MIN_KEY_CHARACTERS <= len(key) <= MAX_KEY_CHARACTERS:
        raise ConfigError(
            f"{API_KEY_VARIABLE} must have {MIN_KEY_CHARACTERS} to {MAX_KEY_CHARACTERS} characters, not {len(key)}; "
            "take some that nobody guesses, such as those of `openssl rand -hex 32`"
        )
    return key


def is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches an address, whatever its name resolves to."""
    try:
        found = socket.getaddrinfo(host or None, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError):
        return True  # nothing can listen there, which is said when it is tried
    return all(ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback for *_, address in found)
