"""Frames that a process must survive: noise, damaged messages, and well-formed ones that make no sense.

Messages are made from the types themselves, so those to come are covered too: mostly values that are allowed, at the
borders, and now and then one that is not.
"""

import math
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import msgspec
from msgspec import inspect

from diptych.core.messages import PROTOCOL_VERSION, FrontendGone
from diptych.wire.frame import HEADER, MAGIC

Known = Mapping[str, Sequence[Any]]
"""By field: values with which a message gets further than with random ones."""

INTS = [0, 1, 2, 3, 31, 32, 33, 64, 1000, 49151, 49152, 2**31 - 1]
WRONG_INTS = [-1, -(2**63), 2**31, 2**53 + 1, 2**63, 2**64 - 1]
FLOATS = [0.0, 1.0, 0.5, 1e-30, 1000.0, 1e9, 1e30]
WRONG_FLOATS = [math.nan, math.inf, -math.inf, -1.0, 1e308]
TEXTS = ["stranger", "x", "stranger-2", "../../tmp/x", "ipc:///tmp/x", "tcp://127.0.0.1:1", "é\0\n", "x" * 300, ""]
SIZES = [0, 1, 1, 2, 3, 40, 300]
ALWAYS_BELIEVED = {FrontendGone}
"""Makes sense whatever is in it, and ends honest requests."""
WRONG = 0.03
"""How often a value is of the wrong kind, or out of bounds."""


class HostileMessages:
    """Makes messages of the given kinds from a source of chance."""

    def __init__(self, kinds: Any, draw: Random, known: Known) -> None:
        known_kinds = [kind for kind in kinds.__args__ if kind not in ALWAYS_BELIEVED]
        self._types = [self._struct(kind) for kind in inspect.multi_type_info(known_kinds)]
        self._draw = draw
        self._known = known

    @staticmethod
    def _struct(kind: inspect.Type) -> inspect.StructType:
        assert isinstance(kind, inspect.StructType)
        return kind

    def body(self) -> bytes:
        """Return a message without its header."""
        return msgspec.msgpack.encode(self._value(self._draw.choice(self._types)))

    def frame(self) -> bytes:
        """Return a frame of any sort."""
        draw = self._draw
        match draw.randrange(8):
            case 0:
                return draw.randbytes(draw.choice([0, 1, 4, 5, 100, 3000]))
            case 1:
                return HEADER + draw.randbytes(draw.choice([0, 1, 5, 100]))
            case 2:
                return MAGIC + bytes([draw.choice([0, PROTOCOL_VERSION - 1, PROTOCOL_VERSION + 1, 255])]) + self.body()
            case 3 | 4:
                return damaged(HEADER + self.body(), draw)
            case _:
                return HEADER + self.body()

    def _value(self, kind: inspect.Type, name: str = "") -> Any:  # noqa: PLR0911, PLR0912  a case a kind
        draw = self._draw
        if name in self._known and draw.random() < 0.8:
            return draw.choice(self._known[name])
        if draw.random() < WRONG:
            return draw.choice([None, True, 7, "text", b"bytes", [], {}, [[]], *WRONG_INTS, *WRONG_FLOATS])
        match kind:
            case inspect.IntType():
                return draw.choice(INTS)
            case inspect.FloatType():
                return draw.choice(FLOATS)
            case inspect.StrType():
                return draw.choice(TEXTS)
            case inspect.BytesType():
                return draw.randbytes(draw.choice([16, 16, 16, 0, 125, 128]))
            case inspect.BoolType():
                return draw.random() < 0.5
            case inspect.EnumType(cls=cls):
                return draw.choice(list(cls)).value
            case inspect.NoneType():
                return None
            case inspect.UnionType(types=types):
                return self._value(draw.choice(types))
            case inspect.ListType(item_type=item) | inspect.VarTupleType(item_type=item):
                return [self._value(item) for _ in range(draw.choice(SIZES))]
            case inspect.TupleType(item_types=items):
                return [self._value(item) for item in items]
            case inspect.DictType(key_type=key, value_type=value):
                return {self._key(key): self._value(value) for _ in range(draw.choice([0, 1, 2]))}
            case inspect.StructType():
                return self._fields(kind)
            case inspect.Metadata(type=bare):
                return self._value(bare, name)
        raise AssertionError(f"no way to make a {kind}")

    def _key(self, kind: inspect.Type) -> Any:
        made = self._value(kind)
        return made if isinstance(made, str | int | float | bytes) else "key"

    def _fields(self, kind: inspect.StructType) -> Any:
        draw = self._draw
        made = {
            one.encode_name: self._value(one.type, one.encode_name)
            for one in kind.fields
            if draw.random() > (WRONG if one.required or kind.array_like else 0.7)
        }
        if kind.array_like:
            return list(made.values())
        return made if kind.tag_field is None else {kind.tag_field: kind.tag, **made}


def damaged(frame: bytes, draw: Random) -> bytes:
    """Flip bits, cut, repeat a piece, or let it claim another length."""
    if not frame:
        return frame
    place = draw.randrange(len(frame))
    match draw.randrange(4):
        case 0:
            flipped = bytes([frame[place] ^ 1 << draw.randrange(8)])
            return frame[:place] + flipped + frame[place + 1 :]
        case 1:
            return frame[:place]
        case 2:
            return frame[:place] + frame[place : place + 20] * 3 + frame[place + 20 :]
        case _:  # the heads of long strings, lists and maps
            head = draw.choice([b"\xdb", b"\xc6", b"\xdd", b"\xdf", b"\x9f", b"\x8f"])
            return frame[:place] + head + b"\xff\xff\xff\xff" + frame[place + 1 :]
