"""Requests with keys, without, and with what is none: each gets an answer of its own, in OpenAI's shape."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest
from tests.live_server import eventually

from diptych.core.api_keys import ApiKey, KeyLimits, hash_key
from diptych.core.errors import OverloadedError

if TYPE_CHECKING:
    from tests.frontend.conftest import Frontend, StartFrontend

COMPLETION = {"model": "smol", "prompt": "Hi"}
ALICE, BOB, ADMIN = "dk-alice-secret", "dk-bob-secret", "dk-admin-secret"


def key(secret: str, *, is_admin: bool = False, salt: str = "", limits: KeyLimits | None = None) -> ApiKey:
    name = secret.split("-")[1]
    return ApiKey(
        name=name,
        hash=hash_key(secret),
        cache_salt=salt or f"salt of {name}",
        is_admin=is_admin,
        limits=limits or KeyLimits(),
    )


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


@pytest.fixture
def keyed(start_frontend: "StartFrontend") -> "Frontend":
    frontend = start_frontend(
        api_keys=(key(ALICE), key(BOB), key(ADMIN, is_admin=True)), cors_origins=("https://chat.example",)
    )
    frontend.say("Hello there, world!")
    return frontend


@pytest.fixture
def http(keyed: "Frontend") -> Iterator[httpx.Client]:
    with keyed.http() as client:
        yield client


def limited(start_frontend: "StartFrontend", **limits: int) -> "Frontend":
    frontend = start_frontend(api_keys=(key(ALICE, limits=KeyLimits(**limits)), key(BOB)))
    frontend.say("Hello there, world!")
    return frontend


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize(
    ("headers", "query", "complaint"),
    [
        ([], "", "this server needs an API key"),
        ([], "?api_key=dk-alice-secret", "an API key in the URL is not read"),
        ([("Authorization", "Bearer dk-nobody")], "", "this API key is not valid here"),
        ([("Authorization", "Bearer")], "", "an API key is one word"),
        ([("Authorization", "")], "", "names another scheme than Bearer"),
        ([("Authorization", "Basic ZGstYWxpY2Utc2VjcmV0")], "", "names another scheme than Bearer"),
        ([("Authorization", ALICE)], "", "names another scheme than Bearer"),
        ([("Authorization", "Bearer dk-alice secret")], "", "without spaces"),
        ([("Authorization", "Bearer " + "x" * 20_000)], "", "no API key is longer than 512"),
        ([("Authorization", f"Bearer {ALICE}"), ("Authorization", f"Bearer {BOB}")], "", "several Authorization"),
        ([("Authorization", b"Bearer \xff\xfe")], "", "this API key is not valid here"),
    ],
)
def test_what_is_no_key_is_told_why(
    http: httpx.Client, headers: list[tuple[str, Any]], query: str, complaint: str
) -> None:
    response = http.post("/v1/completions" + query, json=COMPLETION, headers=httpx.Headers(headers))
    error = error_of(response, 401)
    assert complaint in error["message"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
    assert response.headers["WWW-Authenticate"].startswith("Bearer")
    assert "secret" not in response.text, "no answer repeats what may be a key"


def test_a_key_opens(http: httpx.Client) -> None:
    for scheme in ("Bearer", "bearer", "BEARER  "):
        assert http.post("/v1/completions", json=COMPLETION, headers={"Authorization": f"{scheme} {ALICE}"}).is_success


def test_openai_client(keyed: "Frontend") -> None:
    base_url = f"{keyed.url}/v1"
    with openai.OpenAI(base_url=base_url, api_key=ALICE, max_retries=0) as client:
        assert client.completions.create(model="smol", prompt="Hi").choices[0].text == "Hello there, world!"
    wrong = openai.OpenAI(base_url=base_url, api_key="dk-nobody", max_retries=0)
    with wrong as client, pytest.raises(openai.AuthenticationError, match="not valid here"):
        client.completions.create(model="smol", prompt="Hi")


@pytest.mark.parametrize("path", ["/health", "/ready", "/version", "/docs", "/openapi.json"])
def test_what_needs_no_key(http: httpx.Client, path: str) -> None:
    assert http.get(path).status_code == 200


@pytest.mark.parametrize(
    "path", ["/v1/models", "/v1/models/smol", "/v1/responses/x", "/absent", "/", "//health", "/health/", "/docs/x"]
)
def test_all_else_needs_one(http: httpx.Client, path: str) -> None:
    error_of(http.get(path), 401)
    assert http.get(path, headers=bearer(ALICE)).status_code in {200, 404}


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize", "/v1/responses", "/v1/chat/completions"])
def test_posts_need_one_before_their_body_is_read(http: httpx.Client, path: str) -> None:
    error_of(http.post(path, content=b"x" * 5_000_000), 401)


@pytest.mark.parametrize("path", ["/diptych/status", "/diptych/requests"])
def test_what_all_keys_do_is_for_admins(http: httpx.Client, path: str) -> None:
    error_of(http.get(path), 401)
    assert error_of(http.get(path, headers=bearer(ALICE)), 403)["code"] == "permission_denied"
    assert http.get(path, headers=bearer(ADMIN)).status_code == 200


def test_under_a_path_the_same_is_open(start_frontend: "StartFrontend") -> None:
    with start_frontend(root_path="/llm", api_keys=(key(ALICE),)).http() as http:
        assert http.get("/llm/health").status_code == http.get("/health").status_code == 200
        error_of(http.get("/llm/v1/models"), 401)
        error_of(http.get("/llm/diptych/status", headers=bearer(ALICE)), 403)
        assert http.get("/llm/v1/models", headers=bearer(ALICE)).status_code == 200


def test_web_pages_may_ask_whether_they_may_and_read_why_not(http: httpx.Client) -> None:
    preflight = {
        "Origin": "https://chat.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    allowed = http.options("/v1/chat/completions", headers=preflight)
    assert allowed.status_code == 200
    assert "authorization" in allowed.headers["access-control-allow-headers"].lower()
    refused = http.post("/v1/completions", json=COMPLETION, headers={"Origin": "https://chat.example"})
    error_of(refused, 401)
    assert refused.headers["access-control-allow-origin"] == "https://chat.example"


# What keys share


def test_keys_never_meet_in_the_cache_whatever_salts_their_clients_choose(
    keyed: "Frontend", http: httpx.Client
) -> None:
    salts = {
        (secret, asked): _salt_of(keyed, http, secret, asked)
        for secret in (ALICE, BOB)
        for asked in (None, "", "x", "y")
        if asked != ""
    }
    assert len(set(salts.values())) == 6
    assert _salt_of(keyed, http, ALICE, "x") == salts[ALICE, "x"]
    assert all("salt of" not in salt for salt in salts.values()), "the secret itself goes nowhere"


def test_keys_of_one_group_do(start_frontend: "StartFrontend") -> None:
    frontend = start_frontend(api_keys=(key(ALICE, salt="ours"), key(BOB, salt="ours")))
    with frontend.http() as http:
        assert _salt_of(frontend, http, ALICE, None) == _salt_of(frontend, http, BOB, None)
        assert _salt_of(frontend, http, ALICE, "x") != _salt_of(frontend, http, BOB, "y")


def _salt_of(frontend: "Frontend", http: httpx.Client, secret: str, asked: str | None) -> str:
    body = COMPLETION | ({} if asked is None else {"cache_salt": asked})
    assert http.post("/v1/completions", json=body, headers=bearer(secret)).is_success
    return frontend.next_entered().cache_salt


def test_responses_are_their_owners(http: httpx.Client) -> None:
    body = {"model": "smol", "input": "Hi"}
    made = http.post("/v1/responses", json=body, headers=bearer(ALICE)).json()["id"]
    assert http.get(f"/v1/responses/{made}", headers=bearer(ALICE)).status_code == 200
    error_of(http.get(f"/v1/responses/{made}", headers=bearer(BOB)), 404)
    error_of(http.delete(f"/v1/responses/{made}", headers=bearer(ADMIN)), 404)
    error_of(http.post("/v1/responses", json=body | {"previous_response_id": made}, headers=bearer(BOB)), 404)
    assert http.delete(f"/v1/responses/{made}", headers=bearer(ALICE)).status_code == 200


# Limits


def test_requests_a_minute(start_frontend: "StartFrontend") -> None:
    with limited(start_frontend, requests_per_minute=2).http() as http:
        for _ in range(2):
            assert http.post("/v1/completions", json=COMPLETION, headers=bearer(ALICE)).is_success
        refused = http.post("/v1/completions", json=COMPLETION, headers=bearer(ALICE))
        assert error_of(refused, 429)["code"] == "rate_limit_exceeded"
        assert 1 <= int(refused.headers["Retry-After"]) <= 30
        assert http.get("/v1/models", headers=bearer(ALICE)).is_success, "only what costs something counts"
        assert http.post("/v1/completions", json=COMPLETION, headers=bearer(BOB)).is_success


@pytest.mark.parametrize("stream", [False, True])
def test_requests_at_a_time(start_frontend: "StartFrontend", stream: bool) -> None:
    frontend = limited(start_frontend, max_concurrent=1)
    frontend.say_and_wait("Well")
    with frontend.http() as http:
        with http.stream("POST", "/v1/completions", json=COMPLETION | {"stream": True}, headers=bearer(ALICE)) as held:
            lines = held.iter_lines()  # kept: its end would be that of the connection
            assert next(lines)
            frontend.say("Hello")
            body = COMPLETION | {"stream": stream}
            error_of(http.post("/v1/completions", json=body, headers=bearer(ALICE)), 429)
            assert http.post("/v1/completions", json=body, headers=bearer(BOB)).is_success
        frontend.next_left()  # of Bob's
        frontend.next_left()  # Alice has hung up
        eventually(
            lambda: http.post("/v1/completions", json=COMPLETION, headers=bearer(ALICE)).is_success, "a free place"
        )


def test_tokens_a_minute_are_what_came_not_what_was_asked_for(start_frontend: "StartFrontend") -> None:
    frontend = limited(start_frontend, tokens_per_minute=100)
    answer = frontend.say("Hello there, world!")
    with frontend.http() as http:
        num_sent = 0
        while True:
            response = http.post("/v1/completions", json=COMPLETION | {"max_tokens": 40}, headers=bearer(ALICE))
            if not response.is_success:
                break
            usage = response.json()["usage"]
            num_sent += 1
        assert usage["total_tokens"] == len(frontend.tokenizer.encode("Hi")) + len(answer)
        # Each costs what it used; the last one that is let in still finds 41 tokens.
        assert num_sent == (100 - 41) // usage["total_tokens"] + 1
        assert "100 tokens a minute" in error_of(response, 429)["message"]
        assert int(response.headers["Retry-After"]) >= 1


def test_what_was_not_served_costs_no_tokens(start_frontend: "StartFrontend") -> None:
    frontend = limited(start_frontend, tokens_per_minute=50)
    frontend.service.refusal = OverloadedError("full")
    with frontend.http() as http:
        for _ in range(20):
            refused = http.post("/v1/completions", json=COMPLETION | {"max_tokens": 40}, headers=bearer(ALICE))
            assert error_of(refused, 429)["message"] == "full"
        frontend.service.refusal = None
        assert http.post("/v1/completions", json=COMPLETION | {"max_tokens": 40}, headers=bearer(ALICE)).is_success


def test_who_asks_for_more_than_a_minute_holds_is_served_once(start_frontend: "StartFrontend") -> None:
    frontend = limited(start_frontend, tokens_per_minute=1)
    with frontend.http() as http:
        assert http.post("/v1/completions", json=COMPLETION, headers=bearer(ALICE)).is_success
        error_of(http.post("/v1/completions", json=COMPLETION, headers=bearer(ALICE)), 429)
