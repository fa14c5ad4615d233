"""Every error that Diptych raises on purpose.

DiptychError
├── ConfigError            a flag, file or environment value is wrong; nothing was started
├── ModelError             a model cannot be found, fetched, read or converted; the cache is as it was
├── LaunchError            a process did not come up or died while starting; all others were stopped
├── BenchError             something could not be measured; what was measured before is kept
├── EngineError            a step could not be computed; its sequences must not be continued
│   ├── BlockTableError    a block table failed its check before the step; nothing was computed or written
│   ├── DamagedBlockError  blocks do not hold what was written there; only who reads them must end
│   └── GrammarError       an answer's grammar is wrong or cannot be followed; only its own request must end
├── TierError              a store below the workers' blocks cannot be used; everything is computed as without it
├── TransferError          KV did not get to another node; nothing of it counts, and nothing of it is moving any more
│   └── TransferRefusedError   the peer does not take it, and would not the next time
├── ProtocolError          a peer sent what it must not send; the message was dropped
├── PeerUnreachableError   a peer takes no messages; the message was not sent
└── RequestError           a request cannot be served; says which HTTP answer it gets
    ├── InvalidRequestError    400: the client must change the request
    ├── NotFoundError          404: no such model or route
    ├── OverloadedError        429: try again later, with Retry-After
    │   └── SloError               429: it would miss the SLO for the load of others
    ├── InternalError          500: a defect of ours; the log has the details
    └── UnavailableError       503: no worker can take it now, or could in time; mostly with Retry-After
"""

from diptych.core.ids import BlockId, RequestId


class DiptychError(Exception):
    """Base of all errors raised on purpose; the text is one line that says what to do."""


class ConfigError(DiptychError):
    """A flag, file or environment value is wrong; nothing was started."""


class ModelError(DiptychError):
    """A model cannot be found, fetched, read or converted; the cache is as it was before."""


class LaunchError(DiptychError):
    """A process did not come up; every process started with it has been stopped."""


class BenchError(DiptychError):
    """Something could not be measured; what was measured before is kept."""


class EngineError(DiptychError):
    """A step could not be computed; the KV of its sequences is undefined from the step's first token on."""

    def concerns(self, request_id: RequestId, epoch: int) -> bool:
        """Tell whether what a row of the step was of, under that epoch, must end."""
        del request_id, epoch
        return True


class BlockTableError(EngineError):
    """A block table failed its check; nothing was computed and no block was written."""


class DamagedBlockError(EngineError):
    """Blocks do not hold what was written there; only who reads them must end, and no step of theirs counts."""

    def __init__(
        self, message: str, blocks: frozenset[tuple[BlockId, int]], readers: frozenset[tuple[RequestId, int]]
    ) -> None:
        """`blocks`: each with the epoch that was counted on; `readers`: requests and epochs of the rows concerned."""
        super().__init__(message)
        self.blocks = blocks
        self.readers = readers

    def concerns(self, request_id: RequestId, epoch: int) -> bool:
        """Tell whether it is a reader."""
        return (request_id, epoch) in self.readers


class GrammarError(EngineError):
    """A grammar is wrong, or cannot be followed any further; only the request that asked for it must end."""


class TierError(DiptychError):
    """A store of KV below the workers' blocks cannot be used; blocks and requests are as they were."""


class TransferError(DiptychError):
    """KV did not get from one node to another; nothing of it counts, and nothing of it is moving any more."""


class TransferRefusedError(TransferError):
    """The peer does not take it; trying again would be of no use."""


class ProtocolError(DiptychError):
    """A peer sent bytes that are no message of ours; they were dropped."""


class PeerUnreachableError(DiptychError):
    """A peer's inbox takes no messages; this one was not sent."""


class RequestError(DiptychError):
    """A request cannot be served. No block or queue place is held for it any more.

    `http_status`, `kind` and `code` become OpenAI's error object; `param` names the offending field. `retry_after_s` is
    the time after which a retry makes sense; None: nobody knows, or none does.
    """

    http_status = 500
    kind = "server_error"
    code: str | None = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.param = param
        self.retry_after_s = retry_after_s
        if code is not None:
            self.code = code


class InvalidRequestError(RequestError):
    """The client must change the request (HTTP 400)."""

    http_status = 400
    kind = "invalid_request_error"


class NotFoundError(RequestError):
    """No such model or route (HTTP 404)."""

    http_status = 404
    kind = "invalid_request_error"
    code = "not_found"


class OverloadedError(RequestError):
    """The queue is full (HTTP 429)."""

    http_status = 429
    kind = "rate_limit_error"
    code = "overloaded"
    retry_after_s: float

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message, retry_after_s=retry_after_s)


class SloError(OverloadedError):
    """The request is predicted to miss the SLO for the load of others (HTTP 429)."""


class InternalError(RequestError):
    """A defect of ours ended the request (HTTP 500); the log has the details."""

    http_status = 500
    kind = "server_error"
    code = "internal_error"


class UnavailableError(RequestError):
    """No worker can take the request now (HTTP 503)."""

    http_status = 503
    kind = "server_error"
    code = "unavailable"


class RequestTimeoutError(RequestError):
    """The request's deadline passed before it was finished (HTTP 504); its blocks are being freed."""

    http_status = 504
    kind = "server_error"
    code = "timeout"
