"""Every way to fail, as the one JSON shape that OpenAI's clients understand. The end of a request that is not served.

{"error": {"message": ..., "type": ..., "param": ..., "code": ...}}
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from diptych.core.errors import InternalError, InvalidRequestError, NotFoundError, OverloadedError, RequestError
from diptych.telemetry.rejections import OnRejected

MAX_MESSAGE_CHARACTERS = 1000
MAX_PARAM_CHARACTERS = 200


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    """The offending field, such as `messages[0].role`."""
    code: str | None


class ErrorBody(BaseModel):
    """OpenAI's error object."""

    error: ErrorDetail


class BodyTooLargeError(RequestError):
    """The HTTP body is longer than the server reads (HTTP 413)."""

    http_status = 413
    kind = "invalid_request_error"
    code = "request_too_large"


class BodyTimeoutError(RequestError):
    """The HTTP body did not arrive in time (HTTP 408)."""

    http_status = 408
    kind = "invalid_request_error"
    code = "timeout"


class HeadTimeoutError(RequestError):
    """The head of an HTTP request did not arrive in time (HTTP 408)."""

    http_status = 408
    kind = "invalid_request_error"
    code = "timeout"


class HeadTooLargeError(RequestError):
    """The head of an HTTP request is longer than the server reads (HTTP 431)."""

    http_status = 431
    kind = "invalid_request_error"
    code = "headers_too_large"


class AuthenticationError(RequestError):
    """The request has no API key, or one that is not valid (HTTP 401)."""

    http_status = 401
    kind = "invalid_request_error"
    code = "invalid_api_key"


class ForbiddenError(RequestError):
    """The API key is valid, but not for this (HTTP 403)."""

    http_status = 403
    kind = "invalid_request_error"
    code = "permission_denied"


class KeyLimitError(OverloadedError):
    """The API key has used what it may for now (HTTP 429, with Retry-After)."""

    code = "rate_limit_exceeded"


class MethodNotAllowedError(RequestError):
    """The route exists with another method (HTTP 405)."""

    http_status = 405
    kind = "invalid_request_error"
    code = "method_not_allowed"


def error_body(error: RequestError) -> bytes:
    """Return the JSON that tells the client of `error`."""
    detail = ErrorDetail(
        message=_printable(str(error), MAX_MESSAGE_CHARACTERS),
        type=error.kind,
        param=None if error.param is None else _printable(error.param, MAX_PARAM_CHARACTERS),
        code=error.code,
    )
    return ErrorBody(error=detail).model_dump_json().encode()


def error_response(error: RequestError, headers: Mapping[str, str] | None = None) -> Response:
    """Return the HTTP answer that tells the client of `error`."""
    all_headers = dict(headers or {})
    if error.retry_after_s is not None:
        all_headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if isinstance(error, AuthenticationError):
        all_headers["WWW-Authenticate"] = 'Bearer realm="diptych"'
    return Response(error_body(error), error.http_status, all_headers, media_type="application/json")


def _printable(text: str, max_characters: int) -> str:
    """Shorten what a client sent, and replace halves of surrogate pairs: they cannot be sent back."""
    if len(text) > max_characters:
        text = text[: max_characters - 1] + "…"
    return text.encode("utf-8", "replace").decode()


def install_error_handlers(app: FastAPI, on_rejected: OnRejected) -> None:
    """Make `app` answer every error in OpenAI's shape (an unexpected one is caught by `middleware.LastResort`).

    `on_rejected` hears of bodies that are wrong; whoever raises a RequestError has told it already.
    """

    async def on_validation_error(_: Request, error: Exception) -> Response:
        found = cast(RequestValidationError, error)
        described = describe_validation_error(found.errors(), found.body)
        on_rejected(described)
        return error_response(described)

    app.add_exception_handler(RequestError, _on_request_error)
    app.add_exception_handler(RequestValidationError, on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)


async def _on_request_error(_: Request, error: Exception) -> Response:
    return error_response(cast(RequestError, error))


async def _on_http_exception(request: Request, exception: Exception) -> Response:
    """Answer what the web framework itself refuses."""
    error = cast(HTTPException, exception)
    where = f"{request.method} {request.url.path}"
    described: RequestError
    match error.status_code:
        case 404:
            described = NotFoundError(f"there is no {where}; /docs lists what there is")
        case 405:
            described = MethodNotAllowedError(f"there is no {where}; it takes another method")
        case status if status < 500:  # noqa: PLR2004  the border to server errors
            described = InvalidRequestError("the body could not be read as JSON", code="invalid_json")
        case _:
            described = InternalError("the server could not handle this request")
    return error_response(described, error.headers)


def describe_validation_error(errors: Sequence[Any], body: object) -> InvalidRequestError:
    """Turn pydantic's list of findings about `body` (each place begins with "body") into one line about one of them."""
    finding = _most_telling(errors)
    location: list[str | int] = list(finding["loc"])[1:]
    context: dict[str, Any] = finding.get("ctx") or {}
    if finding["type"] == "json_invalid":
        return InvalidRequestError(f"the body is not valid JSON: {context.get('error')}", code="invalid_json")
    if not location and "parameter" not in context:
        return InvalidRequestError(
            "the body must be a JSON object, sent with the header Content-Type: application/json"
        )
    steps = _steps_of_body(location, body, is_missing=finding["type"] == "missing")
    # A form that depends on a field (a message's on its role): the field is what is wrong.
    named = context.get("parameter") or str(context.get("discriminator", "")).strip("'")
    param = _path([*steps, *([named] if named else [])])
    if finding["type"] == "extra_forbidden":
        return InvalidRequestError(f"unrecognized request argument: {param}", param=param, code="unknown_parameter")
    code = "unsupported_parameter" if finding["type"] == "unsupported_parameter" else None
    return InvalidRequestError(f"{param}: {finding['msg']}", param=param, code=code)


def _most_telling(errors: Sequence[Any]) -> dict[str, Any]:
    """Return the first finding or, where its field may have several forms, the one that got furthest into it."""
    first: dict[str, Any] = errors[0]
    of_same_field = [error for error in errors if error["loc"][:2] == first["loc"][:2]]
    return max(of_same_field, key=lambda error: len(error["loc"]), default=first)


def _steps_of_body(location: Sequence[str | int], body: Any, *, is_missing: bool) -> list[str | int]:
    """Return the steps that lead to a place in the body: pydantic also names the form that it tried."""
    steps: list[str | int] = []
    for number, step in enumerate(location, start=1):
        is_key = isinstance(body, dict) and step in body
        is_index = isinstance(body, list) and isinstance(step, int) and step < len(body)
        if is_key or is_index:
            body = body[step]
        elif not (is_missing and number == len(location)):
            continue
        steps.append(step)
    return steps


def _path(location: Sequence[str | int]) -> str:
    """Write `("messages", 0, "role")` as `messages[0].role`."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in location)
    return text.removeprefix(".")
