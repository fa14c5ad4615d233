"""The served OpenAPI schema: what routes answer, with the schemas of what they really encode."""

from collections.abc import Mapping
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from diptych.frontend.errors import ErrorBody

Responses = dict[int | str, dict[str, Any]]

_MARK = "x-diptych-type"
"""Where `answers` leaves a type for `install_schema`, which has all of them at once."""
_TYPES: dict[str, Any] = {}

_ERRORS = {
    400: "The request must be changed; `param` says where.",
    404: "No such thing.",
    408: "The body did not arrive in time.",
    413: "The body is too long.",
    429: "Overloaded; Retry-After says when to come back.",
    500: "A defect of the server; its log says which.",
    503: "No worker can take it now, or the server is shutting down.",
    504: "The deadline passed before the answer was complete.",
}
_OF_BODIES = (400, 408, 413, 429, 500, 503)
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
    """Return the `responses` of a route whose answer is a `kind` (a type that msgspec encodes; None: any JSON)."""
    content: dict[str, Any] = {"application/json": {"schema": _marked(kind)}}
    if is_stream:
        content["text/event-stream"] = {}  # OpenAPI 3.1 has no words for events
    responses: Responses = {200: {"description": "The answer.", "content": content}}
    codes = [*(_OF_BODIES if has_body or can_generate else ()), *(_OF_GENERATION if can_generate else ())]
    for code in sorted({*codes, *([404] if not_found else [])}):
        responses[code] = {"model": ErrorBody, "description": _ERRORS[code]}
    for code, other in (or_else or {}).items():
        responses[code] = {"description": _ERRORS[code], "content": {"application/json": {"schema": _marked(other)}}}
    return responses


def _marked(kind: Any) -> dict[str, Any]:
    if kind is None:
        return {}
    _TYPES[repr(kind)] = kind
    return {_MARK: repr(kind)}


def install_schema(app: FastAPI, model_name: str) -> None:
    """Make `app` serve the whole schema at /openapi.json; `model_name` is the only model that bodies may name."""
    schema: dict[str, Any] = {}

    def openapi() -> dict[str, Any]:
        if not schema:
            schema.update(_schema_of(app))
            _name_model(schema["components"]["schemas"], model_name)
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
                    mark = media.get("schema", {}).get(_MARK)
                    if mark is not None:
                        media["schema"] = by_mark[mark]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    return schema


def _name_model(schemas: dict[str, Any], model_name: str) -> None:
    for schema in schemas.values():
        model = schema.get("properties", {}).get("model", {})
        if model.get("type") == "string":
            model["enum"] = [model_name]
