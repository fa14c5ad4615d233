"""Whatever the order and the echoes: tokens in order, each once, then one end or one error."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.core.errors import UnavailableError
from diptych.core.events import FinishReason
from diptych.core.ids import RequestId
from diptych.core.messages import TokenEvent, TokenRun
from diptych.core.service import AnswerPart, EndOut, StartOut, TokensOut
from diptych.router.answer import Answer

END = EndOut(FinishReason.STOP)


def token(index: int, token_id: int, choice: int = 0) -> TokenEvent:
    return TokenEvent(RequestId("r"), 0, index, token_id, choice)


def run_of(index: int, num_tokens: int) -> TokenRun:
    return TokenRun(RequestId("r"), 0, index, [100 + index + further for further in range(num_tokens)])


def end(answer: Answer, num_tokens: int, choice: int = 0) -> None:
    answer.put_end(choice, FinishReason.STOP, num_tokens)


async def read_all(answer: Answer) -> tuple[list[int], list[AnswerPart]]:
    tokens: list[int] = []
    ends: list[AnswerPart] = []
    async for part in answer:
        if isinstance(part, TokensOut):
            assert part.token_ids
            assert not ends
            tokens += part.token_ids
        elif isinstance(part, EndOut):
            ends.append(part)
    return tokens, ends


@given(st.integers(1, 8), st.data())
def test_any_order_with_echoes_gives_the_same_answer(num_tokens: int, data: st.DataObject) -> None:
    """-1 stands for the end."""
    once = data.draw(st.permutations([*range(num_tokens), -1]))
    echoes = data.draw(st.lists(st.sampled_from(once), max_size=8))
    arrivals = data.draw(st.permutations([*once, *echoes]))

    async def scenario() -> None:
        answer = Answer(max_tokens=10)
        reader = asyncio.create_task(read_all(answer))
        for arrival in arrivals:
            if arrival == -1:
                end(answer, num_tokens)
            else:
                answer.put_token(token(arrival, 100 + arrival))
            await asyncio.sleep(0)
        assert await reader == ([100 + index for index in range(num_tokens)], [END])

    asyncio.run(scenario())


def test_tells_echoes_and_impossible_tokens_apart() -> None:
    answer = Answer(max_tokens=3)
    assert answer.put_token(token(1, 11))
    assert not answer.put_token(token(1, 11))
    assert not answer.put_token(token(3, 13))
    assert not answer.put_token(token(-1, 9))
    assert answer.num_in_order == 0
    assert answer.put_token(token(0, 10))
    assert answer.num_in_order == 2
    end(answer, 3)
    assert not answer.is_settled
    assert answer.put_token(token(2, 12))
    assert answer.is_settled


def test_an_error_comes_after_the_tokens_and_stays() -> None:
    async def scenario() -> None:
        answer = Answer(max_tokens=5)
        answer.put_token(token(0, 10))
        answer.put_token(token(2, 12))
        answer.fail(UnavailableError("gone"))
        answer.fail(UnavailableError("a second opinion"))
        end(answer, 1)
        assert await anext(answer) == StartOut(0)
        assert await anext(answer) == TokensOut([10])
        for _ in range(2):
            with pytest.raises(UnavailableError, match="gone"):
                await anext(answer)

    asyncio.run(scenario())


def test_a_restart_forgets_what_came_out_of_order_and_goes_on_behind_the_rest() -> None:
    answer = Answer(max_tokens=5, num_choices=2)
    for index, token_id in ((0, 20), (2, 22)):
        answer.put_token(token(index, token_id))
    end(answer, 3)
    end(answer, 0, choice=1)
    assert answer.open_answers() == {0: [20]}
    answer.restart()
    answer.put_token(token(1, 21))
    assert answer.open_answers() == {0: [20, 21]}
    assert not answer.is_settled
    end(answer, 2)
    assert answer.is_settled


def test_a_slow_reader_gets_all_there_is_in_one_part() -> None:
    async def scenario() -> None:
        answer = Answer(max_tokens=100)
        for index in range(100):
            answer.put_token(token(index, index))
        end(answer, 100)
        answer.put_start(4, None, 2)
        answer.put_start(0, None)
        assert await anext(answer) == StartOut(4, None, 2)
        assert await anext(answer) == TokensOut(list(range(100)))
        assert await anext(answer) == END
        with pytest.raises(StopAsyncIteration):
            await anext(answer)

    asyncio.run(scenario())


@given(st.integers(1, 4), st.data())
def test_choices_are_each_in_order_however_they_mix(num_choices: int, data: st.DataObject) -> None:
    lengths = [data.draw(st.integers(1, 5)) for _ in range(num_choices)]
    arrivals = data.draw(st.permutations([(c, i) for c in range(num_choices) for i in range(-1, lengths[c])]))

    async def scenario() -> None:
        answer = Answer(max_tokens=10, num_choices=num_choices)
        answer.put_start(0, None)
        got: list[list[int]] = [[] for _ in range(num_choices)]
        ended: list[int] = []

        async def read() -> None:
            async for part in answer:
                if isinstance(part, TokensOut):
                    assert part.choice not in ended
                    got[part.choice] += part.token_ids
                elif isinstance(part, EndOut):
                    ended.append(part.choice)

        reader = asyncio.create_task(read())
        for choice, index in arrivals:
            if index < 0:
                end(answer, lengths[choice], choice)
            else:
                answer.put_token(token(index, 10 * choice + index, choice))
            await asyncio.sleep(0)
        await reader
        assert got == [[10 * choice + index for index in range(lengths[choice])] for choice in range(num_choices)]
        assert sorted(ended) == list(range(num_choices))

    asyncio.run(scenario())


def test_a_stopped_choice_ends_where_its_reader_is() -> None:
    async def scenario() -> None:
        answer = Answer(max_tokens=10, num_choices=2)
        answer.put_token(token(0, 5))
        assert await anext(answer) == StartOut(0)
        assert await anext(answer) == TokensOut([5])
        answer.put_token(token(1, 6))
        answer.stop(0)
        assert not answer.put_token(token(2, 7))
        assert await anext(answer) == END
        assert not answer.is_settled
        answer.put_token(token(0, 8, 1))
        end(answer, 1, 1)
        assert [part async for part in answer] == [TokensOut([8], 1), EndOut(FinishReason.STOP, 1)]

    asyncio.run(scenario())


def test_a_choice_that_nobody_asked_for_is_passed_over() -> None:
    answer = Answer(max_tokens=10)
    assert not answer.put_token(token(0, 5, choice=1))
    assert not answer.put_token(token(0, 5, choice=-1))
    end(answer, 1, choice=7)
    assert not answer.is_settled


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 6)), max_size=12))
def test_runs_bring_each_token_once_and_in_order(runs: list[tuple[int, int]]) -> None:
    async def scenario() -> None:
        answer, expected = Answer(max_tokens=10), 0
        for index, num_tokens in runs:
            # One that begins beyond the next token is of no use, and no choice has more than ten.
            num_new = max(min(index + num_tokens, 10) - expected, 0) if index <= expected else 0
            assert answer.put_run(run_of(index, num_tokens)) == num_new
            expected += num_new
        assert answer.num_in_order == expected
        end(answer, expected)
        assert await read_all(answer) == ([100 + index for index in range(expected)], [END])

    asyncio.run(scenario())


def test_runs_and_single_tokens_make_one_answer() -> None:
    async def scenario() -> None:
        answer = Answer(max_tokens=10)
        answer.put_token(token(0, 100))
        assert answer.put_run(run_of(0, 3)) == 2
        answer.put_token(token(3, 103))
        end(answer, 4)
        assert answer.put_run(run_of(4, 1)) == 0, "it has ended"
        assert await read_all(answer) == ([100, 101, 102, 103], [END])

    asyncio.run(scenario())
