"""What those who watch are told, how often, and who may watch."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import msgspec
import pytest
from tests.frontend.conftest import record
from tests.live_server import eventually

from diptych.core.api_keys import ApiKey, KeyLimits, hash_key
from diptych.core.events import UNFINISHED, Lifecycle
from diptych.core.feed import Frame
from diptych.core.slo import Slo
from diptych.frontend.auth.key_file import changing_key_file
from diptych.frontend.feed import MAX_READERS, MOST_ENDED, make_window

if TYPE_CHECKING:
    from tests.frontend.conftest import Frontend, StartFrontend

SLO = Slo(1.0, 0.05)
FEED = "/diptych/events"


@contextmanager
def watching(http: httpx.Client, **headers: str) -> Iterator[Iterator[Frame]]:
    """Open the feed; iterate over its frames."""
    with http.stream("GET", FEED, headers=headers) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = (line for line in answer.iter_lines() if line)
        yield (msgspec.json.decode(line.removeprefix("data: "), type=Frame) for line in lines)


def timeline(arrived: float, first: float, finished: float) -> dict[Lifecycle, float]:
    return {Lifecycle.ARRIVED: arrived, Lifecycle.FIRST_TOKEN: first, Lifecycle.FINISHED: finished}


@pytest.fixture
def own(start_frontend: "StartFrontend") -> "Frontend":
    return start_frontend(slo=SLO)


def test_a_frame_has_all_that_there_is_to_see(own: "Frontend") -> None:
    own.service.unfinished = [record("here", outcome=UNFINISHED, timeline={Lifecycle.ARRIVED: 3.0})]
    with own.http() as http, watching(http) as frames:
        frame = next(frames)
    assert frame.slo == SLO
    assert set(frame.status.workers) == {"mixed-0"}
    assert [one.request_id for one in frame.running] == ["here"]
    assert [one.request_id for one in frame.ended] == ["chatcmpl-1"]
    assert frame.status.num_requests == 1
    assert frame.verdict.sentence


def test_each_end_is_told_once_and_to_everybody(own: "Frontend") -> None:
    own.service.ended = [record(f"old-{number}") for number in range(MOST_ENDED + 100)]
    with own.http() as http, watching(http) as frames:
        first = next(frames)
        assert [one.request_id for one in first.ended] == [f"old-{number}" for number in range(100, MOST_ENDED + 100)]
        assert next(frames).ended == []
        own.service.ended.append(record("new"))
        told = [one.request_id for _ in range(3) for one in next(frames).ended]
        assert told == ["new"]
        with watching(http) as others:
            assert next(others).ended[-1].request_id == "new"


def test_only_so_many_may_watch_and_who_leaves_makes_room(own: "Frontend") -> None:
    with own.http() as http, ExitStack() as readers:
        for _ in range(MAX_READERS):
            next(readers.enter_context(watching(http)))
        refused = http.get(FEED)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "overloaded")
        assert "others are watching already" in refused.json()["error"]["message"]
        readers.close()

        def is_let_in() -> bool:
            with http.stream("GET", FEED) as answer:
                return answer.status_code == 200

        eventually(is_let_in, "room for one more")


def test_a_server_that_stops_does_not_wait_for_those_who_watch(own: "Frontend") -> None:
    with own.http() as http, http.stream("GET", FEED) as answer:
        lines = answer.iter_lines()
        next(lines)
        own.begin_drain()
        draining = next(line for line in lines if line)
        assert "error" not in json.loads(draining.removeprefix("data: ")), "it is shown to its end"
        own.stop()
        last: dict[str, Any] = {}
        for line in lines:
            last = json.loads(line.removeprefix("data: ")) if line else last
    assert last["error"]["code"] == "draining"


# Keys


def key(secret: str, *, is_admin: bool = False) -> ApiKey:
    return ApiKey(
        name=secret, hash=hash_key(secret), cache_salt="0123456789abcdef", is_admin=is_admin, limits=KeyLimits()
    )


def test_the_feed_is_for_admins_and_ends_with_their_keys(start_frontend: "StartFrontend", tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    with changing_key_file(file) as keys:
        keys[:] = [key("alice"), key("ops", is_admin=True), key("other", is_admin=True)]
    frontend = start_frontend(api_key_file=file)
    with frontend.http() as http:
        assert http.get(FEED).status_code == 401
        assert http.get(FEED, params={"key": "ops"}).status_code == 401
        assert http.get(FEED, headers={"Authorization": "Bearer alice"}).status_code == 403
        with watching(http, Authorization="Bearer ops") as frames:
            next(frames)
            with changing_key_file(file) as keys:
                keys[:] = [key("other", is_admin=True)]
            assert 1 < sum(1 for _ in frames) < 20, "told for a second more, and then no more"


def test_the_page_is_for_everybody_and_reaches_nothing_but_the_server(start_frontend: "StartFrontend") -> None:
    frontend = start_frontend(api_keys=(key("ops", is_admin=True),), root_path="/llm")
    with frontend.http() as http:
        for path in (
            "/dashboard",
            "/llm/dashboard",
            "/dashboard/style.css",
            "/dashboard/main.js",
            "/dashboard/icon.svg",
        ):
            answer = http.get(path)
            assert answer.status_code == 200, path
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            unchanged = http.get(path, headers={"If-None-Match": answer.headers["etag"]})
            assert (unchanged.status_code, unchanged.content) == (304, b"")
        slash = http.get("/llm/dashboard/")
        assert (
            slash.status_code,
            httpx.URL(f"{frontend.url}/llm/dashboard/").join(slash.headers["location"]).path,
        ) == (
            307,
            "/llm/dashboard",
        )
        for name in ("nothing.js", "../feed.py", "..%2ffeed.py", "index.html"):
            assert http.get(f"/dashboard/{name}").status_code in {401, 404}, name


# Windows


def test_a_window_counts_who_met_the_slo() -> None:
    window = make_window(
        [
            record("met", num_output_tokens=11, timeline=timeline(0.0, 0.5, 0.9), num_cached_tokens=2),
            record("late", num_output_tokens=11, timeline=timeline(0.0, 1.5, 1.9)),
            record("slow", num_output_tokens=11, timeline=timeline(0.0, 0.5, 1.5), outcome="length"),
            record("short", num_output_tokens=1, timeline=timeline(0.0, 0.5, 0.5)),
            record("left", outcome="aborted"),
            record("broken", outcome="failed", num_output_tokens=0),
        ],
        SLO,
    )
    assert (window.num_answered, window.num_failed, window.num_aborted, window.num_met_slo) == (4, 1, 1, 2)
    assert window.attainment == pytest.approx(0.4)
    assert (window.num_prompt_tokens, window.num_cached_tokens) == (18, 2)
    assert window.ttft is not None and window.tpot is not None
    assert window.ttft.p50 == pytest.approx(0.5)
    assert window.tpot.p50 == pytest.approx(0.04)


def test_a_window_of_nothing_claims_nothing() -> None:
    window = make_window([], SLO)
    assert (window.attainment, window.ttft, window.tpot) == (None, None, None)
