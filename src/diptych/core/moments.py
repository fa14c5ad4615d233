"""Moments of one machine's clock as those of another.

Monotonic clocks count from when their machines started: a deadline of one says nothing on another. So whatever crosses
the border between machines is translated there, once in each direction, and nobody behind the border knows of other
clocks. What is a moment says its type: `diptych.core.bounds.Moment`, wherever in a message it stands.
"""

import math
from collections.abc import Callable, Mapping
from functools import cache
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from diptych.core.bounds import IS_MOMENT

Shift = Callable[[Any, float], Any]
"""Returns a value with its moments moved by so many seconds."""
MessageT = TypeVar("MessageT", bound=msgspec.Struct)


def shifted(message: MessageT, offset_s: float) -> MessageT:
    """Return a message with all its moments moved by `offset_s`: by how much the clock that it goes to is ahead.

    A moment from before that machine started becomes 0, as no clock shows less.
    """
    shift = _struct_shift(type(message))
    moved: MessageT = message if shift is None else shift(message, offset_s)
    return moved


def _shift_moment(moment_s: float, offset_s: float) -> float:
    # Those that mean `never` stay so.
    return max(moment_s + offset_s, 0.0) if math.isfinite(moment_s) else moment_s


@cache
def _struct_shift(kind: type[msgspec.Struct]) -> Shift | None:
    """Return how to move the moments of a struct; None: there are none."""
    hints = get_type_hints(kind, include_extras=True)
    shifts = {field: shift for field in kind.__struct_fields__ if (shift := _shift_of(hints[field])) is not None}
    if not shifts:
        return None

    def shift_struct(value: msgspec.Struct, offset_s: float) -> msgspec.Struct:
        return msgspec.structs.replace(
            value, **{field: shift(getattr(value, field), offset_s) for field, shift in shifts.items()}
        )

    return shift_struct


def _shift_of(hint: Any) -> Shift | None:
    """Return how to move the moments of a field; None: it has none."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        metas = [meta for meta in hint.__metadata__ if isinstance(meta, msgspec.Meta)]
        is_moment = any((meta.extra or {}).get(IS_MOMENT, False) for meta in metas)
        return _shift_moment if is_moment else _shift_of(arguments[0])
    if origin in {Union, UnionType}:
        return _shift_of_union(arguments)
    if origin is list:
        return _shift_of_list(arguments[0])
    if origin is dict:
        return _shift_of_dict(arguments[1])
    return _struct_shift(hint) if isinstance(hint, type) and issubclass(hint, msgspec.Struct) else None


def _shift_of_union(members: tuple[Any, ...]) -> Shift | None:
    shifts = [shift for member in members if (shift := _shift_of(member)) is not None]
    if not shifts:
        return None
    (shift,) = shifts  # such as `Request | None`: nothing else is needed so far

    def shift_if_there(value: Any, offset_s: float) -> Any:
        return None if value is None else shift(value, offset_s)

    return shift_if_there


def _shift_of_list(element: Any) -> Shift | None:
    shift = _shift_of(element)
    return None if shift is None else lambda values, offset_s: [shift(value, offset_s) for value in values]


def _shift_of_dict(element: Any) -> Shift | None:
    shift = _shift_of(element)
    if shift is None:
        return None

    def shift_values(values: Mapping[Any, Any], offset_s: float) -> dict[Any, Any]:
        return {key: shift(value, offset_s) for key, value in values.items()}

    return shift_values
