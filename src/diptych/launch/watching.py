"""Reads the feed of a running server (`GET /diptych/events`), for those who watch from a terminal."""

from collections.abc import Generator

import httpx
import msgspec

from diptych.core.errors import LaunchError
from diptych.core.feed import Frame
from diptych.launch.server import HTTP_FORBIDDEN, HTTP_UNAUTHORIZED, Remote, no_answer, reason_of

FRAME_TIMEOUT_S = 5.0
"""Frames come four times a second."""
EVENT = "data: "
_decode = msgspec.json.Decoder(Frame).decode


def watch(remote: Remote) -> Generator[Frame, None, None]:
    """Iterate over frames until the server ends the stream.

    Raises: LaunchError if none answers there, it wants (another) key, is another release, or falls silent.
    """
    url = f"{remote.url.rstrip('/')}/diptych/events"
    try:
        with (
            httpx.Client(headers=remote.headers, verify=remote.tls, timeout=FRAME_TIMEOUT_S) as client,
            client.stream("GET", url) as answer,
        ):
            _require_feed(remote.url, answer)
            for line in answer.iter_lines():
                if line.startswith(EVENT) and not line.startswith(EVENT + '{"error"'):
                    yield _decode(line.removeprefix(EVENT))
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise no_answer(remote.url, error) from None
    except msgspec.DecodeError as error:
        raise LaunchError(f"{remote.url} tells what this release does not understand ({error})") from None


def _require_feed(url: str, answer: httpx.Response) -> None:
    """Raise a LaunchError that says why there is no feed, if so."""
    if answer.status_code in {HTTP_UNAUTHORIZED, HTTP_FORBIDDEN}:
        answer.read()
        raise LaunchError(f"{url} wants an API key: {reason_of(answer)}")
    if answer.is_error:
        answer.read()
        raise LaunchError(f"{url} shows nothing: {reason_of(answer)}")
