"""The served schema tells which errors each route may answer, and they are the ones that it answers."""

from typing import TYPE_CHECKING, Any

import httpx
import pytest

from diptych.core.api_keys import ApiKey, KeyLimits, hash_key

if TYPE_CHECKING:
    from tests.frontend.conftest import Frontend, StartFrontend

USER, OPERATOR = "dk-user-secret", "dk-operator-secret"
OPEN = {"/health", "/ready", "/version"}


def key(secret: str, *, is_admin: bool) -> ApiKey:
    return ApiKey(
        name=secret.split("-")[1], hash=hash_key(secret), cache_salt="salt", is_admin=is_admin, limits=KeyLimits()
    )


@pytest.fixture
def keyed(start_frontend: "StartFrontend") -> "Frontend":
    return start_frontend(api_keys=(key(USER, is_admin=False), key(OPERATOR, is_admin=True)))


def operations(http: httpx.Client) -> dict[tuple[str, str], dict[str, Any]]:
    """Return all routes by path and method."""
    paths = http.get("/openapi.json").json()["paths"]
    return {(path, method): told for path, methods in paths.items() for method, told in methods.items()}


def test_every_route_may_lack_time_room_and_connections(frontend: "Frontend") -> None:
    with frontend.http() as http:
        told = operations(http)
        assert len(told) > 10
        for (path, method), operation in told.items():
            codes = operation["responses"].keys()
            assert {"408", "431", "503"} <= codes, path
            assert ("429" in codes) == (method == "post"), path
            assert not {"401", "403"} & codes, "keys are not needed here"
            url = path.format(model="smol", response_id="x", worker_id="x", node="x")
            response = http.request(method, url, headers={"x": "y" * 70_000})
            assert response.status_code == 431
        assert told["/v1/completions", "post"]["responses"].keys() >= {"400", "404", "413", "500", "504"}


def test_ready_answers_503_in_two_shapes(frontend: "Frontend") -> None:
    with frontend.http() as http:
        schema = operations(http)["/ready", "get"]["responses"]["503"]["content"]["application/json"]["schema"]
    names = [one["$ref"].rpartition("/")[2] for one in schema["anyOf"]]
    assert names == ["Answer.Health", "ErrorBody"]


def test_where_keys_are_needed_it_says_so(keyed: "Frontend") -> None:
    with keyed.http() as http:
        for (path, method), operation in operations(http).items():
            url = path.format(model="smol", response_id="x", worker_id="x", node="x")
            without = http.request(method, url, json=None if method != "post" else {})
            wrong = http.request(
                method, url, json=None if method != "post" else {}, headers={"Authorization": f"Bearer {USER}"}
            )
            assert ("401" in operation["responses"]) == (without.status_code == 401) == (path not in OPEN), path
            is_admins = path.startswith("/diptych/") or path == "/metrics"
            assert ("403" in operation["responses"]) == (wrong.status_code == 403) == is_admins, path
            assert bool(operation["security"]) == (path not in OPEN), path
