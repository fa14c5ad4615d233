"""What /v1/completions sends: whole answers, and the events of streams."""

from dataclasses import dataclass

from msgspec import UNSET, Struct, UnsetType

from diptych.core.request import TokenLogprobs
from diptych.frontend.answer import AnswerEvent, ChoiceEnd, Delta, Generation, PromptRead, WholeAnswer, WholeChoice
from diptych.frontend.openai.wire import (
    DONE,
    AnswerLook,
    CompletionLogprobs,
    FinishReasonName,
    PromptLogprobs,
    Usage,
    UsageCount,
    encode,
    event,
    finish_name,
)
from diptych.frontend.text.choice_text import ShownToken, TextPiece


class CompletionChoice(Struct, frozen=True):
    """A choice of a completion, or of an event of its stream."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReasonName | None = None
    stop_reason: str | int | None = None
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


class Completion(Struct, frozen=True):
    """A completion, or one event of its stream."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET
    object: str = "text_completion"


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionLook(AnswerLook):
    """What a client wants to see of the answers to a completion's prompts."""

    echoes: list[str] | None = None
    """The text of each prompt, with which its answers begin; None: they do not."""
    is_prompt_all: bool = False
    """Whether only the prompt is wanted (`max_tokens: 0`): the one token that was sampled is left out."""


class _Choices:
    """Makes the choices of whole answers and of events; knows which prompt each belongs to."""

    def __init__(self, look: CompletionLook, generation: Generation) -> None:
        self._look = look
        self._generation = generation

    def prompt_of(self, choice: int) -> int:
        """Return which prompt a choice answers."""
        return choice // self._generation.requests[0].num_choices

    def choices_of(self, prompt: int) -> range:
        """Return the choices that answer a prompt."""
        num_each = self._generation.requests[0].num_choices
        return range(prompt * num_each, (prompt + 1) * num_each)

    def echo(self, prompt: int) -> str:
        """Return the text with which the answers to a prompt begin."""
        return "" if self._look.echoes is None else self._look.echoes[prompt]

    def echoed_tokens(self, prompt: int, told: list[TokenLogprobs] | None) -> list[ShownToken]:
        """Return the prompt's tokens as if they were the answer's; the first has no log-probability."""
        if self._look.echoes is None or self._look.logprobs is None:
            return []
        token_ids = self._generation.requests[prompt].prompt_token_ids
        offsets = self._look.logprobs.offsets(token_ids)
        known = [None] * len(token_ids) if told is None else [None, *told]
        return [ShownToken(*token) for token in zip(token_ids, known, offsets, strict=True)]

    def shown(self, piece: TextPiece) -> TextPiece:
        """Return what of a piece the client wants."""
        return TextPiece("") if self._look.is_prompt_all else piece

    def logprobs(self, choice: int, tokens: list[ShownToken], echoed: list[ShownToken]) -> CompletionLogprobs | None:
        """Return the log-probabilities of a piece, after those of an echoed prompt."""
        if self._look.logprobs is None:
            return None
        front = self._look.logprobs.completion(echoed, 0)
        back = self._look.logprobs.completion(tokens, len(self.echo(self.prompt_of(choice))))
        return CompletionLogprobs(
            front.tokens + back.tokens,
            front.token_logprobs + back.token_logprobs,
            front.top_logprobs + back.top_logprobs,
            front.text_offset + back.text_offset,
        )

    def token_ids(self, tokens: list[ShownToken]) -> list[int] | UnsetType:
        """Return a piece's token ids, where asked for."""
        return [token.token_id for token in tokens] if self._look.with_token_ids else UNSET

    def prompt_token_ids(self, prompt: int) -> list[int] | UnsetType:
        """Return a prompt's token ids, where asked for."""
        return self._generation.requests[prompt].prompt_token_ids if self._look.with_token_ids else UNSET

    def prompt_logprobs(self, read: PromptRead) -> PromptLogprobs | UnsetType:
        """Return vLLM's log-probabilities of a prompt, where asked for."""
        if self._look.prompt_logprobs is None or read.logprobs is None:
            return UNSET
        token_ids = self._generation.requests[read.prompt].prompt_token_ids
        return self._look.prompt_logprobs.prompt(token_ids, read.logprobs)


class CompletionStream:
    """The events of one stream. Each method returns events to send, perhaps none."""

    def __init__(self, look: CompletionLook, generation: Generation) -> None:
        self._look = look
        self._choices = _Choices(look, generation)
        self._usage = UsageCount(generation)

    def on_event(self, happened: AnswerEvent) -> bytes:
        """Return what to send when something has happened to an answer."""
        match happened:
            case PromptRead():
                return self._begin(happened)
            case Delta():
                piece = self._choices.shown(happened.piece)
                self._usage.num_output_tokens += piece.num_tokens
                return self._go_on(happened.choice, piece)
            case ChoiceEnd():
                return self._end(happened)

    def closing(self) -> bytes:
        """Return the last events, [DONE] included."""
        if not self._look.with_usage:
            return DONE
        return event(self._completion([], self._usage.usage())) + DONE

    def _begin(self, read: PromptRead) -> bytes:
        self._usage.add_prompt(read)
        choices, prompt = self._choices, read.prompt
        echo, echoed = choices.echo(prompt), choices.echoed_tokens(prompt, read.logprobs)
        prompt_token_ids, prompt_logprobs = choices.prompt_token_ids(prompt), choices.prompt_logprobs(read)
        if not echo and prompt_token_ids is UNSET and prompt_logprobs is UNSET:
            return b""
        return b"".join(
            self._event(
                CompletionChoice(
                    choice,
                    echo,
                    choices.logprobs(choice, [], echoed),
                    prompt_token_ids=prompt_token_ids,
                    prompt_logprobs=prompt_logprobs,
                )
            )
            for choice in choices.choices_of(prompt)
        )

    def _go_on(self, choice: int, piece: TextPiece) -> bytes:
        if not piece.text and not piece.tokens:
            return b""
        logprobs = self._choices.logprobs(choice, piece.tokens, [])
        token_ids = self._choices.token_ids(piece.tokens)
        return self._event(CompletionChoice(choice, piece.text, logprobs, token_ids=token_ids))

    def _end(self, end: ChoiceEnd) -> bytes:
        return self._event(CompletionChoice(end.choice, "", None, finish_name(end.reason), end.stop_reason))

    def _event(self, choice: CompletionChoice) -> bytes:
        usage: Usage | UnsetType | None = UNSET
        if self._look.with_usage:
            usage = self._usage.usage() if self._look.with_usage_always else None
        return event(self._completion([choice], usage))

    def _completion(self, choices: list[CompletionChoice], usage: Usage | UnsetType | None) -> Completion:
        return Completion(*self._look.stamp, choices, usage)


def whole_completion(look: CompletionLook, generation: Generation, answer: WholeAnswer) -> bytes:
    """Return the body of an answer that was not streamed."""
    count = UsageCount(generation)
    for read in answer.prompts.values():
        count.add_prompt(read)
    if not look.is_prompt_all:
        count.num_output_tokens = sum(choice.ended.num_tokens for choice in answer.choices)
    choices = _Choices(look, generation)
    whole = [_whole_choice(choices, answer, index, choice) for index, choice in enumerate(answer.choices)]
    return encode(Completion(*look.stamp, whole, count.usage()))


def _whole_choice(choices: _Choices, answer: WholeAnswer, index: int, choice: WholeChoice) -> CompletionChoice:
    prompt = choices.prompt_of(index)
    read = answer.prompts[prompt]
    piece = choices.shown(choice.piece)
    return CompletionChoice(
        index,
        choices.echo(prompt) + piece.text,
        choices.logprobs(index, piece.tokens, choices.echoed_tokens(prompt, read.logprobs)),
        finish_name(choice.ended.reason),
        choice.ended.stop_reason,
        choices.token_ids(piece.tokens),
        choices.prompt_token_ids(prompt),
        choices.prompt_logprobs(read),
    )
