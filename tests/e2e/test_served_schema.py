"""Whatever schemathesis makes of the served OpenAPI schema: no 5xx, and no answer that the schema does not tell."""

import contextlib
from collections.abc import Iterator
from typing import Any, cast

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)
from tests.live_server import LiveServer, Serving

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
MAX_EXAMPLES = 60
"""Of each route, and each of the two kinds."""
FIXED = settings(derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
MIN_SERVED = 2
"""Of a route's valid requests; fewer would mean that the schema tells too little."""


@pytest.fixture(scope="module")
def small_server(serving: Serving) -> Iterator[LiveServer]:
    """A server whose answers are short, so that most of the time goes into many requests."""
    with serving(engine="modeled", max_model_len=128) as live:
        yield live


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_no_request_finds_a_hole(small_server: LiveServer, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(f"{small_server.url}/openapi.json")
    operations: list[Any] = [cast("Any", result).ok() for result in schema.get_all_operations()]
    assert len(operations) > 10
    for operation in operations:
        statuses = examine(operation, mode)
        if mode is GenerationMode.POSITIVE and "{" not in operation.path:
            assert sum(status == 200 for status in statuses) >= min(MIN_SERVED, len(statuses)), operation.label
    small_server.wait_until_idle()


def examine(operation: Any, mode: GenerationMode) -> list[int]:
    """Send requests to a route and check the answers; return their statuses."""
    statuses: list[int] = []

    @settings(FIXED, max_examples=MAX_EXAMPLES)
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        statuses.append(case.call_and_validate(checks=CHECKS, timeout=30).status_code)

    with contextlib.suppress(Unsatisfiable):  # nothing about a route without parameters can be wrong
        send()
    return statuses
