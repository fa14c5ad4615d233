"""What all request bodies share: strictness, and checks of values that several of them have."""

from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

MAX_STOP_STRINGS = 16
MAX_STOP_STRING_CHARACTERS = 1024
MIN_INT64, MAX_INT64 = -(2**63), 2**63 - 1


class Body(BaseModel):
    """Base of all bodies and of the objects in them."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)


class Returned(Body):
    """Base of what clients send back as it came: client libraries keep notes in it that repeat what it says."""

    client_notes: ClassVar[frozenset[str]] = frozenset()
    """The names of those notes, which are dropped."""

    @model_validator(mode="before")
    @classmethod
    def _drop_notes(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        return {name: value for name, value in data.items() if name not in cls.client_notes}


def invalid(kind: str, message: str, parameter: str | None = None) -> PydanticCustomError:
    """Return the error for a bad value; `parameter` names the field where the error's place does not."""
    return PydanticCustomError(kind, message, {} if parameter is None else {"parameter": parameter})


def check_unicode(text: str) -> str:
    """Refuse halves of surrogate pairs: JSON can write them, but no text has them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise invalid("unicode", "has half of a surrogate pair, which is no character") from None
    return text


Text = Annotated[str, AfterValidator(check_unicode)]
"""A string that can be encoded."""


def _check_stop(value: object) -> object:
    stop_strings: list[Any] = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(text, str) and text for text in stop_strings):
        raise invalid("stop", "must be a string or a list of strings, none of them empty")
    if len(stop_strings) > MAX_STOP_STRINGS:
        raise invalid("stop", f"may hold {MAX_STOP_STRINGS} strings at most")
    if any(len(text) > MAX_STOP_STRING_CHARACTERS for text in stop_strings):
        raise invalid("stop", f"strings may have {MAX_STOP_STRING_CHARACTERS} characters at most")
    check_unicode("".join(stop_strings))
    return value


StopStrings = Annotated[str | list[str] | None, BeforeValidator(_check_stop)]


def stop_strings_of(stop: str | list[str] | None) -> tuple[str, ...]:
    """Return the stop strings as a tuple."""
    if stop is None:
        return ()
    return (stop,) if isinstance(stop, str) else tuple(stop)


def is_token_ids(value: object) -> bool:
    """Tell whether a value is a list of whole numbers."""
    return isinstance(value, list) and all(type(token_id) is int for token_id in value)
