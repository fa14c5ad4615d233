"""Grammars made to stall a server: they end with a 400, or their own answer does, and the answers of others flow."""

import threading
import time
from typing import Any

import pytest
from tests.live_server import LiveServer, StartServer

RULES = "\n".join(f"r{number}: r{number + 1} r{number + 1}" for number in range(3000))
DEEP: dict[str, Any] = {}
for _ in range(200):
    DEEP = {"type": "object", "properties": {"a": DEEP}}

HOSTILE: dict[str, dict[str, Any]] = {
    "endless": {"json": {"type": "integer", "multipleOf": 99_999_989}},
    "stack": {"grammar": f'start: r0\n{RULES}\nr3000: "a"'},
    "quantifiers": {"regex": "((x{1000}){1000}){1000}"},
    "optional": {"regex": "(a?){5000}a{5000}"},
    "late": {"regex": "y(x{1000}){1000}"},
    "states": {"regex": "(.|\\n)*a(.|\\n){400}b"},
    "intersection": {"grammar": "start: A\nA: /(.*a.{15}b)/ & /(.*c.{15}d)/ & ~/(.*e.{15}f)/"},
    "ambiguous": {
        "grammar": "start: r0\n" + "\n".join(f"r{n}: r{n + 1}? r{n + 1}?" for n in range(60)) + '\nr60: "a"?'
    },
    "deep": {"json": DEEP},
    "circular": {"json": {"$ref": "#"}},
    "exponential": {"json": {"allOf": [{"anyOf": [{"required": [f"a{i}{j}"]} for j in range(4)]} for i in range(20)]}},
    "enum": {"json": {"enum": [{"a": number, "b": [number] * 5} for number in range(2200)]}},
    "properties": {"json": {"properties": {f"p{number}": {"type": "string"} for number in range(3300)}}},
    "huge number": {"json": {"type": "integer", "minimum": 10**300}},
    "gbnf": {"grammar": "\n".join(f"r{n} ::= r{n + 1}" for n in range(5000)) + '\nroot ::= r0\nr5000 ::= "a"'},
}
SOON_S = 10.0
MOST_GAP_S = 2.0
"""Of a running answer, whose tokens come every few milliseconds, on a machine that may be busy."""


class Watched:
    """An answer of somebody else, and the longest gap between its events."""

    def __init__(self, server: LiveServer) -> None:
        self._server = server
        self._must_end = threading.Event()
        self.most_gap_s = 0.0
        self.num_events = 0
        self._thread = threading.Thread(target=self._follow)

    def _follow(self) -> None:
        last_s = time.monotonic()
        while not self._must_end.is_set():
            with self._server.stream("somebody else's prompt", max_tokens=1000) as stream:
                while not stream.is_done and not self._must_end.is_set():
                    stream.read(1)
                    now_s = time.monotonic()
                    self.most_gap_s = max(self.most_gap_s, now_s - last_s)
                    last_s = now_s
                    self.num_events += 1

    def __enter__(self) -> "Watched":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._must_end.set()
        self._thread.join()


@pytest.mark.slow
def test_hostile_grammars_stall_nobody(modeled_server: StartServer) -> None:
    server = modeled_server(modeled_time_scale=0.1, mixed=1)
    with Watched(server) as watched:
        for name, structure in HOSTILE.items():
            begin_s = time.monotonic()
            answer = server.post("Hi", structured_outputs=structure, max_tokens=32, top_p=0.9, temperature=1.0, n=4)
            took_s = time.monotonic() - begin_s
            assert answer.status_code in {200, 400}, (name, answer.text)
            assert took_s < SOON_S, name
        after = server.post("Hi", structured_outputs={"regex": "[a-z]{3}"}, max_tokens=8)
        assert after.status_code == 200, "grammars of others are served"
        assert server.records()
    assert watched.num_events > 100
    assert watched.most_gap_s < MOST_GAP_S


@pytest.mark.parametrize(
    "name", ["stack", "quantifiers", "deep", "circular", "exponential", "intersection", "huge number"]
)
def test_what_cannot_be_used_is_a_400(shared_modeled_server: LiveServer, name: str) -> None:
    refused = shared_modeled_server.post("Hi", structured_outputs=HOSTILE[name])
    assert refused.status_code == 400, refused.text
    assert "\n" not in refused.json()["error"]["message"]


def test_what_shows_only_later_ends_its_own_answer(shared_modeled_server: LiveServer) -> None:
    begun = shared_modeled_server.post(
        "Hi", structured_outputs=HOSTILE["late"], max_tokens=32, top_p=0.9, temperature=1
    )
    assert begun.status_code == 400
    assert "cannot be followed" in begun.json()["error"]["message"]
