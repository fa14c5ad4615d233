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
from diptych.frontend.watched_files import WatchedFiles

log = logging.getLogger(__name__)


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
        self._watched = WatchedFiles([] if file is None else [file], clock)
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
        if self._file is None or not self._watched.have_changed():
            return
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
