"""What is left of a malformed message: enough to refuse it."""

from typing import Annotated

import msgspec

from diptych.core.bounds import NAME, ROUTER, Count, Epoch
from diptych.core.ids import FIRST_ROUTER, RequestId, RouterId
from diptych.core.messages.peers import Message, PeerAddress


class RequestRemains(msgspec.Struct, frozen=True, kw_only=True):
    """All that could be read of a request."""

    request_id: Annotated[RequestId, NAME]


class SubmitRemains(Message, frozen=True, kw_only=True, tag="Submit"):
    """All that could be read of a `Submit`: enough to refuse it."""

    request: RequestRemains
    attempt: Count
    router: Annotated[RouterId, ROUTER] = FIRST_ROUTER


class GrantRemains(Message, frozen=True, kw_only=True, tag="Grant"):
    """All that could be read of a `Grant`: enough to give it back."""

    request_id: Annotated[RequestId, NAME]
    epoch: Epoch
    decode: PeerAddress


Remains = SubmitRemains | GrantRemains
