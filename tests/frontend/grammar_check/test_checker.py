"""Hostile grammars, tried out where they hurt nobody."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any

import llguidance
import pytest
from tests.live_server import eventually

from diptych.core.errors import InvalidRequestError
from diptych.frontend.grammar_check import GrammarChecker
from diptych.frontend.grammar_check.checker import TOO_COMPLEX
from diptych.frontend.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tests.frontend.conftest import Frontend

PATIENCE_S = 60.0


def regex(pattern: str) -> str:
    return llguidance.LLMatcher.grammar_from_regex(pattern)


def schema(wanted: dict[str, Any]) -> str:
    return llguidance.LLMatcher.grammar_from_json_schema(wanted)


def recursing() -> str:
    """Return a grammar whose compilation recurses until the stack is full."""
    rules = "\n".join(f"r{number}: r{number + 1} r{number + 1}" for number in range(3000))
    return f'start: r0\n{rules}\nr3000: "a"'


ENDLESS = schema({"type": "integer", "multipleOf": 99_999_989})
"""Compiling it takes for ever, in 1.9 of llguidance."""

Use = Callable[[GrammarChecker], Awaitable[None]]


@pytest.fixture
def using(tokenizer: Tokenizer) -> Iterator[Callable[[Use], None]]:
    """Run something with a checker of its own, whose process must be gone afterwards."""

    def run(use: Use) -> None:
        async def whole() -> None:
            checker = GrammarChecker(tokenizer.vocabulary, [0])
            try:
                await asyncio.wait_for(use(checker), PATIENCE_S)
            finally:
                await checker.close()

        asyncio.run(whole())

    yield run


async def fault_of(checker: GrammarChecker, grammar: str, tenant: str = "") -> str | None:
    try:
        await checker.check(grammar, tenant)
    except InvalidRequestError as error:
        return str(error)
    return None


def test_harmless_ones_may_be_used(using: Callable[[Use], None]) -> None:
    async def use(checker: GrammarChecker) -> None:
        for grammar in (regex("[a-z]+"), regex("(a?){50}a{50}"), schema({"type": "object"})):
            assert await fault_of(checker, grammar) is None

    using(use)


@pytest.mark.parametrize(
    ("grammar", "complaint"),
    [
        (regex("(unclosed"), "the grammar cannot be used: "),
        (regex("(x{1000}){1000}"), "the grammar cannot be followed: it takes too long"),
        (schema({"$ref": "#"}), "the grammar cannot be followed: "),
        (
            schema({"allOf": [{"anyOf": [{"required": [f"a{i}{j}"]} for j in range(4)]} for i in range(20)]}),
            "too large",
        ),
        (recursing(), TOO_COMPLEX),
        pytest.param(ENDLESS, TOO_COMPLEX, marks=pytest.mark.slow),
    ],
    ids=["wrong", "nested quantifiers", "circular", "exponential", "stack", "endless"],
)
def test_hostile_ones_may_not(using: Callable[[Use], None], grammar: str, complaint: str) -> None:
    async def use(checker: GrammarChecker) -> None:
        fault = await fault_of(checker, grammar)
        assert fault is not None
        assert complaint in fault
        assert "\n" not in fault
        assert await fault_of(checker, regex("[a-z]+")) is None, "the next one is served"

    using(use)


def test_a_verdict_is_remembered_for_its_tenant_alone(using: Callable[[Use], None]) -> None:
    async def use(checker: GrammarChecker) -> None:
        tried: list[str] = []
        real = checker._try

        async def counted(grammar: str) -> Any:
            tried.append(grammar)
            return await real(grammar)

        checker._try = counted  # type: ignore[method-assign]
        for tenant in ("a", "a", "b", "a"):
            await checker.check(regex("x"), tenant)
        assert len(tried) == 2

    using(use)


@pytest.mark.slow
def test_nobody_waits_for_more_than_one_grammar_of_another_tenant(using: Callable[[Use], None]) -> None:
    async def use(checker: GrammarChecker) -> None:
        assert await fault_of(checker, regex("warm")) is None
        hostile = [
            asyncio.create_task(fault_of(checker, schema({"type": "integer", "multipleOf": 99_999_000 + odd}), "evil"))
            for odd in range(1, 41, 2)
        ]
        await asyncio.sleep(0)
        begin_s = time.monotonic()
        assert await fault_of(checker, regex("[0-9]+"), "good") is None
        # All twenty would take half a minute of computing.
        assert sum(task.done() for task in hostile) <= 2
        assert time.monotonic() - begin_s < PATIENCE_S
        for task in hostile:
            task.cancel()
        await asyncio.gather(*hostile, return_exceptions=True)

    using(use)


def test_who_hangs_up_leaves_nothing_for_the_next(using: Callable[[Use], None]) -> None:
    async def use(checker: GrammarChecker) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(checker.check(ENDLESS, ""), 0.5)
        assert await fault_of(checker, regex("[a-z]+")) is None
        assert await fault_of(checker, regex("(unclosed")) is not None

    using(use)


def test_a_process_that_was_killed_is_replaced(using: Callable[[Use], None]) -> None:
    async def use(checker: GrammarChecker) -> None:
        assert await fault_of(checker, regex("a")) is None
        child = checker._child
        assert child is not None
        os.kill(child.pid, 9)
        await fault_of(checker, regex("b"))  # may be lost with it
        assert await fault_of(checker, regex("c")) is None

    using(use)


def test_over_http_a_hostile_grammar_is_a_400_and_the_process_ends_with_the_server(
    start_frontend: Callable[..., "Frontend"],
) -> None:
    frontend = start_frontend()
    frontend.say("Hello")
    with frontend.http() as http:
        for grammar, stream in ((recursing(), False), (recursing() + "\n", True)):
            body = {"model": "smol", "prompt": "Hi", "guided_grammar": grammar, "stream": stream}
            refused = http.post("/v1/completions", json=body)
            assert refused.status_code == 400, refused.text
            assert refused.json()["error"]["message"] == TOO_COMPLEX
        assert http.post("/v1/completions", json={"model": "smol", "prompt": "Hi", "guided_regex": "a+"}).is_success
    child = frontend.server._grammars._child
    assert child is not None
    frontend.stop()
    eventually(lambda: child.returncode is not None, "the end of the process")
