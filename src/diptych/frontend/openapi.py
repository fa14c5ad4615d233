"""The served OpenAPI schema: what routes answer, with the schemas of what they really encode."""

from collections.abc import Mapping
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from diptych.frontend.auth.key_check import is_for_admins, is_open
from diptych.frontend.errors import ErrorBody

Responses = dict[int | str, dict[str, Any]]

_ERROR_BODY = {"$ref": "#/components/schemas/ErrorBody"}
_KEY_SCHEME = "api_key"
_MARK = "x-diptych-type"
"""Where `answers` leaves a type for `install_schema`, which has all of them at once."""
_TYPES: dict[str, Any] = {}

_ERRORS = {
    400: "The request must be changed; `param` says where.",
    401: "The request brings no API key, or none that is valid here.",
    403: "The API key is not one of an operator (`diptych key create --admin`).",
    404: "No such thing.",
    408: "The request did not arrive in time.",
    413: "The body is too long.",
    429: "Overloaded, or the API key has used what it may; Retry-After says when to come back.",
    431: "The request's head is too long.",
    500: "A defect of the server; its log says which.",
    503: "No worker can take it now, or could in time, or all connections are taken; a Retry-After says when to come "
    "back.",
    504: "The deadline passed before the answer was complete.",
}
_OF_CONNECTIONS = (408, 431, 503)
"""Whatever is asked for (frontend/http_connection.py)."""
_OF_BODIES = (400, 413, 429, 500)
_OF_GENERATION = (404, 504)


def answers(  # noqa: PLR0913  facts of a route, each by name
    kind: Any,
    *,
    is_stream: bool = False,
    has_body: bool = False,
    can_generate: bool = False,
    not_found: bool = False,
    or_else: Mapping[int, Any] | None = None,
) -> Responses:
    """Return the `responses` of a route whose answer is a `kind` (a type that msgspec encodes; None: any JSON).

    `or_else`: codes that bring another type than errors do, unless it is an error.
    """
    content: dict[str, Any] = {"application/json": {"schema": _marked(kind)}}
    if is_stream:
        content["text/event-stream"] = {}  # OpenAPI 3.1 has no words for events
    responses: Responses = {200: {"description": "The answer.", "content": content}}
    codes = [*_OF_CONNECTIONS, *(_OF_BODIES if has_body or can_generate else ())]
    codes += [*(_OF_GENERATION if can_generate else ()), *([404] if not_found else [])]
    for code in sorted(set(codes)):
        responses[code] = {"model": ErrorBody, "description": _ERRORS[code]}
    for code, other in (or_else or {}).items():
        schema = {"anyOf": [_marked(other), _ERROR_BODY]}
        responses[code] = {"description": _ERRORS[code], "content": {"application/json": {"schema": schema}}}
    return responses


def plain_text() -> Responses:
    """Return the `responses` of a route that answers with text."""
    responses = answers(None, not_found=True)
    responses[200] = {"description": "The answer.", "content": {"text/plain": {}}}
    return responses


def _marked(kind: Any) -> dict[str, Any]:
    if kind is None:
        return {}
    _TYPES[repr(kind)] = kind
    return {_MARK: repr(kind)}


def install_schema(app: FastAPI, model_name: str, *, needs_keys: bool) -> None:
    """Make `app` serve the whole schema at /openapi.json; `model_name` is the only model that bodies may name."""
    schema: dict[str, Any] = {}

    def openapi() -> dict[str, Any]:
        if not schema:
            schema.update(_schema_of(app))
            _name_model(schema["components"]["schemas"], model_name)
            if needs_keys:
                _add_keys(schema)
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


def _schema_of(app: FastAPI) -> dict[str, Any]:
    schema = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
    names = list(_TYPES)
    # A prefix, since request and answer have types of the same names.
    resolved, components = msgspec.json.schema_components(
        [_TYPES[name] for name in names], ref_template="#/components/schemas/Answer.{name}"
    )
    schemas = schema["components"]["schemas"]
    schemas.update({f"Answer.{name}": component for name, component in components.items()})
    by_mark = dict(zip(names, resolved, strict=True))
    for path in schema["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)  # ours are 400
            for response in operation["responses"].values():
                for media in response.get("content", {}).values():
                    if "schema" in media:
                        media["schema"] = _resolved(media["schema"], by_mark)
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    return schema


def _resolved(schema: dict[str, Any], by_mark: Mapping[str, Any]) -> Any:
    """Put types in place of their marks."""
    if _MARK in schema:
        return by_mark[schema[_MARK]]
    if "anyOf" in schema:
        return {"anyOf": [_resolved(one, by_mark) for one in schema["anyOf"]]}
    return schema


def _add_keys(schema: dict[str, Any]) -> None:
    """Say where a key is needed, and what follows if there is none."""
    schema["components"]["securitySchemes"] = {_KEY_SCHEME: {"type": "http", "scheme": "bearer"}}
    for path, operations in schema["paths"].items():
        codes = [] if is_open(path) else [401, 403] if is_for_admins(path) else [401]
        for operation in operations.values():
            operation["security"] = [{_KEY_SCHEME: []}] if codes else []
            for code in codes:
                content = {"application/json": {"schema": _ERROR_BODY}}
                operation["responses"][str(code)] = {"description": _ERRORS[code], "content": content}


def _name_model(schemas: dict[str, Any], model_name: str) -> None:
    for schema in schemas.values():
        model = schema.get("properties", {}).get("model", {})
        if model.get("type") == "string":
            model["enum"] = [model_name]
