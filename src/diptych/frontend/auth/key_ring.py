"""The keys that open this server now: those that it was started with, and those of a file, as often as that changes."""

import hmac
import logging
from collections.abc import Sequence
from pathlib import Path

from diptych.core.api_keys import ApiKey, hash_key
from diptych.core.clock import Clock
from diptych.core.errors import ConfigError
from diptych.frontend.auth.key_file import read_key_file
from diptych.frontend.auth.tenant import Tenant

log = logging.getLogger(__name__)

RECHECK_S = 1.0
"""How long a key that was revoked in the file may still open the server."""


class KeyRing:
    """Finds out whose a key is. Owned by the event loop."""

    def __init__(self, fixed: Sequence[ApiKey], file: Path | None, clock: Clock) -> None:
        """Take `fixed` keys and those of `file`.

        Raises: ConfigError if the file cannot be used.
        """
        self._fixed = list(fixed)
        self._file = file
        self._clock = clock
        self._tenants: dict[str, Tenant] = {}
        self._version = _version(file)
        self._next_check_s = clock.now_s() + RECHECK_S
        self._take(self._fixed + ([] if file is None else read_key_file(file)))

    def find(self, key: str) -> Tenant | None:
        """Return whose key this is; None if it is nobody's.

        Every hash is compared, each in constant time: how long it takes tells nothing of any of them.
        """
        self._follow_file()
        presented = hash_key(key)
        found: Tenant | None = None
        for tenant in self._tenants.values():
            if hmac.compare_digest(tenant.key.hash, presented):
                found = tenant
        return found

    def _follow_file(self) -> None:
        """Take the file's keys anew if it has changed; keep the old ones if it cannot be used any more."""
        if self._file is None or self._clock.now_s() < self._next_check_s:
            return
        self._next_check_s = self._clock.now_s() + RECHECK_S
        version = _version(self._file)
        if version == self._version:
            return
        self._version = version
        try:
            keys = read_key_file(self._file)
        except ConfigError as error:
            log.error("the keys stay as they were: %s", error)  # noqa: TRY400  no traceback wanted
            return
        self._take(self._fixed + keys)

    def _take(self, keys: Sequence[ApiKey]) -> None:
        """Let these keys, and no others, open the server. What they have used stays counted."""
        before, self._tenants = self._tenants, {}
        for key in keys:
            tenant = before.get(key.name) or Tenant(key, self._clock)
            tenant.change(key)
            self._tenants[key.name] = tenant


def _version(file: Path | None) -> tuple[int, ...] | None:
    """Return what changes whenever the file does; None while it is not there."""
    if file is None:
        return None
    try:
        facts = file.stat()
    except OSError:
        return None
    return facts.st_mtime_ns, facts.st_ctime_ns, facts.st_size, facts.st_ino
