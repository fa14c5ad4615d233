"""Follows requests through the service and turns their tokens into text. The way back of a request's life.

Invariant: however the following ends (end of the answers, an exception, cancellation), the service's contexts have been
left, so blocks are free or being freed.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from diptych.core.events import FinishReason
from diptych.core.request import Request, TokenLogprobs
from diptych.core.service import EndOut, RequestService, StartOut
from diptych.frontend.text.choice_text import ChoiceText, TextOptions, TextPiece
from diptych.frontend.text.tokenizer import Tokenizer

MAX_WAITING_EVENTS = 16
"""Of all prompts of a request together: a client that reads slowly slows down all of its answers."""


@dataclass(frozen=True, slots=True)
class Generation:
    """What one HTTP request asks for: answers to one prompt, or to several."""

    requests: list[Request]
    """One a prompt; all with the same number of choices."""
    text: TextOptions

    @property
    def num_choices(self) -> int:
        """Answers in all."""
        return sum(request.num_choices for request in self.requests)


@dataclass(frozen=True, slots=True)
class PromptRead:
    """A prompt has been read, and its answers begin."""

    prompt: int
    """Which of the prompts, from 0."""
    num_cached_tokens: int
    logprobs: list[TokenLogprobs] | None
    """Of the prompt's tokens from the second on; None unless asked for."""
    num_loaded_tokens: int = 0
    """Of the cached ones, how many came from a tier below memory."""


@dataclass(frozen=True, slots=True)
class Delta:
    """The next piece of a choice."""

    choice: int
    """Counted through all prompts."""
    piece: TextPiece


@dataclass(frozen=True, slots=True)
class ChoiceEnd:
    """A choice is complete."""

    choice: int
    reason: FinishReason
    stop_reason: str | int | None
    """The stop string or token that ended it; None for anything else."""
    num_tokens: int


AnswerEvent = PromptRead | Delta | ChoiceEnd


async def _follow(
    service: RequestService, tokenizer: Tokenizer, generation: Generation, prompt: int
) -> AsyncGenerator[AnswerEvent, None]:
    """Yield what happens to the answers to one prompt. Close the iterator to abort.

    Raises: RequestError as `RequestService.serve` and the answer.
    """
    request, options = generation.requests[prompt], generation.text
    first = prompt * request.num_choices
    texts = [
        ChoiceText(tokenizer.start_answer(skip_special_tokens=options.skip_special_tokens), options)
        for _ in range(request.num_choices)
    ]
    async with service.serve(request) as answer:
        async for part in answer:
            if isinstance(part, StartOut):
                yield PromptRead(prompt, part.num_cached_tokens, part.prompt_logprobs, part.num_loaded_tokens)
                continue
            text = texts[part.choice]
            if isinstance(part, EndOut):
                tail = text.finish()
                if tail.text or tail.tokens:
                    yield Delta(first + part.choice, tail)
                reason = FinishReason.STOP if text.is_stopped else part.reason
                yield ChoiceEnd(first + part.choice, reason, text.stop_reason, text.num_tokens)
            elif not text.is_stopped:
                yield Delta(first + part.choice, text.push(part.token_ids, part.logprobs))
                if text.is_stopped:
                    answer.stop_choice(part.choice)


class AnswerEvents:
    """What happens to all answers of a generation, as it happens. A context manager: leaving it aborts what is left.

    Raises (while iterating): RequestError as `RequestService.serve` and the answers; the others are aborted then.
    """

    def __init__(self, service: RequestService, tokenizer: Tokenizer, generation: Generation) -> None:
        self._followers = [
            _follow(service, tokenizer, generation, prompt) for prompt in range(len(generation.requests))
        ]
        self._events: asyncio.Queue[AnswerEvent | BaseException | None] = asyncio.Queue(MAX_WAITING_EVENTS)
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        """Begin. A single prompt is followed by whoever iterates; for several there is a task each."""
        if len(self._followers) > 1:
            self._tasks = [asyncio.create_task(self._pass_on(follower)) for follower in self._followers]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End what still runs."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for follower in self._followers:
            await follower.aclose()

    async def __aiter__(self) -> AsyncGenerator[AnswerEvent, None]:
        """Iterate over the events; those of each prompt are in order."""
        if not self._tasks:
            async for event in self._followers[0]:
                yield event
            return
        num_open = len(self._tasks)
        while num_open:
            next_event = await self._events.get()
            if isinstance(next_event, BaseException):
                raise next_event
            if next_event is None:
                num_open -= 1
            else:
                yield next_event

    async def _pass_on(self, follower: AsyncGenerator[AnswerEvent, None]) -> None:
        try:
            async with aclosing(follower) as events:
                async for event in events:
                    await self._events.put(event)
        except Exception as error:  # raised again where the events are read
            await self._events.put(error)
        else:
            await self._events.put(None)


@dataclass(slots=True)
class WholeChoice:
    """A choice that was not streamed."""

    pieces: list[TextPiece] = field(default_factory=list)
    end: ChoiceEnd | None = None

    @property
    def piece(self) -> TextPiece:
        """All of it."""
        tokens = [token for piece in self.pieces for token in piece.tokens]
        num_tokens = sum(piece.num_tokens for piece in self.pieces)
        return TextPiece("".join([piece.text for piece in self.pieces]), num_tokens, tokens)

    @property
    def ended(self) -> ChoiceEnd:
        """Its end."""
        assert self.end is not None, "a whole answer has all its ends"
        return self.end


@dataclass(slots=True)
class WholeAnswer:
    """All answers of a generation, put together from their events."""

    choices: list[WholeChoice]
    prompts: dict[int, PromptRead] = field(default_factory=dict)

    @classmethod
    def empty(cls, num_choices: int) -> "WholeAnswer":
        """Return an answer of which nothing has come."""
        return cls([WholeChoice() for _ in range(num_choices)])

    def add(self, event: AnswerEvent) -> None:
        """Take what happens next."""
        match event:
            case PromptRead():
                self.prompts[event.prompt] = event
            case Delta():
                self.choices[event.choice].pieces.append(event.piece)
            case ChoiceEnd():
                self.choices[event.choice].end = event


async def collect_answer(service: RequestService, tokenizer: Tokenizer, generation: Generation) -> WholeAnswer:
    """Return all answers of a generation.

    Raises: RequestError as `RequestService.serve` and the answers.
    """
    whole = WholeAnswer.empty(generation.num_choices)
    async with AnswerEvents(service, tokenizer, generation) as events:
        async for event in events:
            whole.add(event)
    return whole
