"""A message as bytes: a header of four that says what protocol it is, of which version, and then msgpack.

Every frame has the header, so a process of another release is found out by its first message, whatever that is, and
what is no message at all costs a comparison.
"""

from typing import Generic, TypeVar

import msgspec

from diptych.core.messages import PROTOCOL_VERSION, Message
from diptych.wire.dropped import DroppedMessages

MAGIC = b"DPT"
HEADER = MAGIC + bytes([PROTOCOL_VERSION])
Incoming = TypeVar("Incoming")


def encode_frame(message: Message) -> bytes:
    """Return the frame of a message."""
    return HEADER + msgspec.msgpack.encode(message)


class FrameDecoder(Generic[Incoming]):
    """Frames to messages of the given kinds; drops and counts what is none."""

    def __init__(self, kinds: object, dropped: DroppedMessages, remains: object = None) -> None:
        """`remains`: kinds, of the same tags, of what is left of malformed messages that somebody waits for."""
        self._decoder: msgspec.msgpack.Decoder[Incoming] = msgspec.msgpack.Decoder(kinds)
        self._remains: msgspec.msgpack.Decoder[Incoming] | None = None
        if remains is not None:
            self._remains = msgspec.msgpack.Decoder(remains)
        self._dropped = dropped

    def try_decode(self, frame: bytes) -> Incoming | None:
        """Return the message, or what is left of it; None for bytes that are none."""
        if not frame.startswith(HEADER):
            self._drop_foreign(frame)
            return None
        try:
            return self._decoder.decode(frame[len(HEADER) :])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            self._dropped.add(f"{len(frame)} bytes that are no message for it: {error}")
            return self._try_decode_remains(frame[len(HEADER) :])

    def _drop_foreign(self, frame: bytes) -> None:
        if len(frame) > len(MAGIC) and frame.startswith(MAGIC):
            version = frame[len(MAGIC)]
            self._dropped.add(
                f"its sender speaks protocol version {version}, this process {PROTOCOL_VERSION}; "
                "end the server and start all of it from the same release",
                is_told_once=True,
            )
        else:
            self._dropped.add(f"{len(frame)} bytes that are no message of Diptych's")

    def _try_decode_remains(self, body: bytes) -> Incoming | None:
        if self._remains is None:
            return None
        try:
            return self._remains.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
