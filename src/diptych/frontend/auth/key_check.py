"""Lets nobody in without a key. The first that looks at what a request says, before its body is read.

Everything needs a key but what `OPEN_PATHS` names, so a new route is closed unless somebody decides otherwise.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any
from urllib.parse import parse_qsl

from starlette.types import ASGIApp, Receive, Scope, Send

from diptych.core.errors import RequestError
from diptych.frontend.auth.key_ring import KeyRing
from diptych.frontend.auth.tenant import Tenant
from diptych.frontend.errors import AuthenticationError, ForbiddenError, error_response
from diptych.telemetry.rejections import OnRejected

OPEN_PATHS = frozenset({"/health", "/ready", "/version", "/docs", "/openapi.json"})
"""For load balancers, and for people who want to know how to ask. They say nothing of any request."""
OPEN_PREFIX = "/dashboard"
"""A page and its files, the same for everybody: what they show comes from other paths, for which they ask for a key."""
ADMIN_PREFIX = "/diptych/"
"""What all keys do: sizes, times and cache hits of everybody's requests."""
ADMIN_PATHS = frozenset({"/metrics"})
"""The same in sums."""
MAX_AUTHORIZATION_BYTES = 512
TENANT = "diptych.tenant"
_KEY_HOLDS = "diptych.key_holds"
HOW = "send it as `Authorization: Bearer KEY`"
_NAMES_IN_URLS = frozenset({"api_key", "api-key", "apikey", "key", "token", "access_token"})


def tenant_of(scope: Mapping[str, Any]) -> Tenant | None:
    """Return who sent a request; None where no keys are needed."""
    tenant: Tenant | None = scope.get(TENANT)
    return tenant


def key_holds(scope: Mapping[str, Any]) -> Callable[[], bool]:
    """Return what tells, of a request that is served for long, whether its key still opens what it asked for."""
    holds: Callable[[], bool] = scope.get(_KEY_HOLDS, lambda: True)
    return holds


def is_open(path: str) -> bool:
    """Tell whether a path needs no key."""
    return path in OPEN_PATHS or path == OPEN_PREFIX or path.startswith(f"{OPEN_PREFIX}/")


def is_for_admins(path: str) -> bool:
    """Tell whether a path needs a key made with --admin."""
    return path.startswith(ADMIN_PREFIX) or path in ADMIN_PATHS


class KeyCheck:
    """Finds out who sends a request, and counts it among that one's."""

    def __init__(self, app: ASGIApp, keys: KeyRing, on_rejected: OnRejected) -> None:
        self._app = app
        self._keys = keys
        self._on_rejected = on_rejected

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        path = "" if scope["type"] != "http" else str(scope["path"]).removeprefix(scope["root_path"])
        if is_open(path):
            await self._app(scope, receive, send)
            return
        with ExitStack() as counted:
            try:
                tenant = self._admit(scope, path)
                if scope["method"] == "POST":
                    counted.enter_context(tenant.requesting())
            except RequestError as error:
                self._on_rejected(error)
                await error_response(error)(scope, receive, send)
                return
            holds = partial(self._holds, scope, path)
            await self._app({**scope, TENANT: tenant, _KEY_HOLDS: holds}, receive, send)

    def _holds(self, scope: Scope, path: str) -> bool:
        try:
            self._admit(scope, path)
        except RequestError:
            return False
        return True

    def _admit(self, scope: Scope, path: str) -> Tenant:
        tenant = self._keys.find(_presented(scope))
        if tenant is None:
            raise AuthenticationError("this API key is not valid here")
        if is_for_admins(path) and not tenant.key.is_admin:
            raise ForbiddenError("this shows what all keys do; it needs a key made with `diptych key create --admin`")
        return tenant


def _presented(scope: Scope) -> str:
    """Return the key that a request brings. No answer repeats any of it.

    Raises: AuthenticationError that says how to bring one.
    """
    headers = [value for name, value in scope["headers"] if name == b"authorization"]
    if not headers:
        names = {name.lower() for name, _ in parse_qsl(scope["query_string"].decode("latin-1"), max_num_fields=None)}
        if names & _NAMES_IN_URLS:
            raise AuthenticationError(f"an API key in the URL is not read, since URLs end up in logs: {HOW}")
        raise AuthenticationError(f"this server needs an API key: {HOW}")
    if len(headers) > 1:
        raise AuthenticationError(f"there are several Authorization headers: {HOW}, once")
    if len(headers[0]) > MAX_AUTHORIZATION_BYTES:
        raise AuthenticationError(f"no API key is longer than {MAX_AUTHORIZATION_BYTES} characters: {HOW}")
    words: list[str] = headers[0].decode("latin-1").split()
    if not words or words[0].lower() != "bearer":
        raise AuthenticationError(f"the Authorization header names another scheme than Bearer: {HOW}")
    if len(words) != 2:  # noqa: PLR2004  the scheme and the key
        raise AuthenticationError(f"an API key is one word, without spaces: {HOW}")
    return words[1]
