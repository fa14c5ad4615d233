"""What a client's headers say of a request besides its body: what it calls it, and in which trace it has it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:@=/+-]{1,128}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(frozen=True, slots=True)
class ClientHeaders:
    """Both are passed over if they are not written as they should be: proxies add them, and no answer hangs on them."""

    request_id: str | None = None
    """`X-Request-Id`: comes back with the answer, and is a part of the request's own id, in logs and traces too."""
    traceparent: str = ""
    """W3C Trace Context; empty: there is none."""

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> "ClientHeaders":
        """Read them; `headers` finds names in any case."""
        request_id, traceparent = headers.get("x-request-id", ""), headers.get("traceparent", "").strip()
        return cls(
            request_id=request_id if _REQUEST_ID.fullmatch(request_id) else None,
            traceparent=traceparent if _TRACEPARENT.fullmatch(traceparent) else "",
        )


NONE = ClientHeaders()
"""Of a request that brings neither."""
