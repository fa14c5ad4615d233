"""Responses that clients may come back to: kept in memory, the newest, up to a bound."""

from collections import OrderedDict
from dataclasses import dataclass

from diptych.core.errors import NotFoundError
from diptych.frontend.openai.messages import Conversation

MAX_RESPONSES = 1_000
MAX_STORED_BYTES = 64_000_000


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response and the conversation that it ends."""

    content: bytes
    """The response object as JSON."""
    messages: Conversation
    """All that was said, the response included; instructions are not a part of it."""
    owner: str = ""
    """Which key made it: the only one that may come back to it."""

    @property
    def num_bytes(self) -> int:
        """About how much memory it takes."""
        return len(self.content) + sum(len(str(message)) for message in self.messages)


class ResponseStore:
    """The newest responses by id. Gone with the process. Owned by the event loop."""

    def __init__(self, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_STORED_BYTES) -> None:
        self._responses: OrderedDict[str, StoredResponse] = OrderedDict()
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._num_bytes = 0

    def put(self, response_id: str, response: StoredResponse) -> None:
        """Keep a response; the oldest make room for it."""
        self._responses[response_id] = response
        self._num_bytes += response.num_bytes
        while len(self._responses) > self._max_responses or self._num_bytes > self._max_bytes:
            _, oldest = self._responses.popitem(last=False)
            self._num_bytes -= oldest.num_bytes

    def get(self, response_id: str, owner: str, param: str | None = None) -> StoredResponse:
        """Return a response.

        Raises: NotFoundError if it was never kept, or is no longer, or is another's.
        """
        response = self._responses.get(response_id)
        if response is None or response.owner != owner:
            raise NotFoundError(
                f"there is no response {response_id!r}; only the newest {self._max_responses} are kept, in memory",
                param=param,
            )
        return response

    def delete(self, response_id: str, owner: str) -> None:
        """Forget a response.

        Raises: NotFoundError if it is not here, or is another's.
        """
        self._num_bytes -= self.get(response_id, owner).num_bytes
        del self._responses[response_id]
