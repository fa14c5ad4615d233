"""Whatever the order and the echoes: tokens in order, each once, then one end or one error."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.core.errors import UnavailableError
from diptych.core.events import FinishReason
from diptych.core.service import AnswerPart, EndOut, TokensOut
from diptych.router.answer import Answer

END = EndOut(FinishReason.STOP, 0)


async def read_all(answer: Answer) -> tuple[list[int], list[AnswerPart]]:
    tokens: list[int] = []
    ends: list[AnswerPart] = []
    async for part in answer:
        if isinstance(part, TokensOut):
            assert part.token_ids
            assert not ends
            tokens += part.token_ids
        else:
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
                answer.put_end(END, num_tokens)
            else:
                answer.put_token(arrival, 100 + arrival)
            await asyncio.sleep(0)
        assert await reader == ([100 + index for index in range(num_tokens)], [END])

    asyncio.run(scenario())


def test_tells_echoes_and_impossible_tokens_apart() -> None:
    answer = Answer(max_tokens=3)
    assert answer.put_token(1, 11)
    assert not answer.put_token(1, 11)
    assert not answer.put_token(3, 13)
    assert not answer.put_token(-1, 9)
    assert answer.num_in_order == 0
    assert answer.put_token(0, 10)
    assert answer.num_in_order == 2
    answer.put_end(END, 3)
    assert answer.is_end_held
    assert answer.put_token(2, 12)
    assert answer.is_settled
    assert not answer.is_end_held


def test_an_error_comes_after_the_tokens_and_stays() -> None:
    async def scenario() -> None:
        answer = Answer(max_tokens=5)
        answer.put_token(0, 10)
        answer.put_token(2, 12)
        answer.fail(UnavailableError("gone"))
        answer.fail(UnavailableError("a second opinion"))
        answer.put_end(END, 1)
        assert await anext(answer) == TokensOut([10])
        for _ in range(2):
            with pytest.raises(UnavailableError, match="gone"):
                await anext(answer)

    asyncio.run(scenario())


def test_a_restart_forgets_what_came_out_of_order() -> None:
    answer = Answer(max_tokens=5)
    answer.put_token(1, 11)
    answer.restart()
    answer.put_token(0, 20)
    assert answer.num_in_order == 1
    with pytest.raises(AssertionError):
        answer.restart()


def test_a_slow_reader_gets_all_there_is_in_one_part() -> None:
    async def scenario() -> None:
        answer = Answer(max_tokens=100)
        for index in range(100):
            answer.put_token(index, index)
        answer.put_end(END, 100)
        assert await anext(answer) == TokensOut(list(range(100)))
        assert await anext(answer) == END
        with pytest.raises(StopAsyncIteration):
            await anext(answer)

    asyncio.run(scenario())
