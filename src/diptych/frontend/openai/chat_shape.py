"""What /v1/chat/completions sends: whole answers, and the chunks of streams."""

import secrets
from dataclasses import dataclass

from msgspec import UNSET, Struct, UnsetType

from diptych.core.events import FinishReason
from diptych.frontend.answer import AnswerEvent, ChoiceEnd, Delta, Generation, PromptRead, WholeAnswer, WholeChoice
from diptych.frontend.openai.wire import (
    DONE,
    AnswerLook,
    ChatLogprobs,
    FinishReasonName,
    PromptLogprobs,
    Usage,
    UsageCount,
    encode,
    event,
    finish_name,
)
from diptych.frontend.text.choice_text import ShownToken, TextPiece
from diptych.frontend.text.tool_calls import CallArguments, CallStart, ContentText, ToolCallReader, ToolText


class CalledFunction(Struct, frozen=True, omit_defaults=True):
    """A call's function, or a piece of it."""

    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class ToolCall(Struct, frozen=True):
    """A call of a tool."""

    id: str
    function: CalledFunction
    type: str = "function"


class ToolCallDelta(Struct, frozen=True, omit_defaults=True):
    """What a chunk adds to a call."""

    index: int
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET
    function: CalledFunction | UnsetType = UNSET


class ChatDelta(Struct, frozen=True, omit_defaults=True):
    """What a chunk adds to the message."""

    role: str | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


class ChatChunkChoice(Struct, frozen=True):
    """A choice of a chat chunk."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReasonName | None = None
    stop_reason: str | int | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET


class ChatChunk(Struct, frozen=True):
    """One event of a chat stream."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    object: str = "chat.completion.chunk"


class ChatMessage(Struct, frozen=True):
    """The assistant's answer."""

    content: str | None
    tool_calls: list[ToolCall] | UnsetType = UNSET
    role: str = "assistant"
    refusal: None = None


class ChatChoice(Struct, frozen=True):
    """A choice of a chat response."""

    index: int
    message: ChatMessage
    finish_reason: FinishReasonName
    logprobs: ChatLogprobs | None = None
    stop_reason: str | int | None = None
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletion(Struct, frozen=True):
    """A whole chat response."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    object: str = "chat.completion"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatLook(AnswerLook):
    """What a client wants to see of the answer to a chat."""

    has_tools: bool = False
    is_tool_named: bool = False


class ChatStream:
    """The chunks of one stream. Each method returns events to send, perhaps none."""

    def __init__(self, look: ChatLook, generation: Generation) -> None:
        self._look = look
        self._generation = generation
        self._usage = UsageCount(generation)
        self._readers: dict[int, ToolCallReader] = {}
        if look.has_tools:
            self._readers = {choice: ToolCallReader() for choice in range(generation.num_choices)}

    def on_event(self, happened: AnswerEvent) -> bytes:
        """Return what to send when something has happened to an answer."""
        match happened:
            case PromptRead():
                return self._begin(happened)
            case Delta():
                self._usage.num_output_tokens += happened.piece.num_tokens
                return self._go_on(happened.choice, happened.piece)
            case ChoiceEnd():
                return self._end(happened)

    def closing(self) -> bytes:
        """Return the last events, [DONE] included."""
        if not self._look.with_usage:
            return DONE
        return event(ChatChunk(*self._look.stamp, [], self._usage.usage())) + DONE

    def _begin(self, read: PromptRead) -> bytes:
        self._usage.add_prompt(read)
        prompt: list[int] | UnsetType = UNSET
        if self._look.with_token_ids:
            prompt = self._generation.requests[read.prompt].prompt_token_ids
        greeting = ChatDelta(role="assistant", content="")
        choices = [ChatChunkChoice(choice, greeting) for choice in range(self._generation.num_choices)]
        return b"".join([self._chunk(choice, prompt) for choice in choices])

    def _go_on(self, choice: int, piece: TextPiece) -> bytes:
        reader = self._readers.get(choice)
        if reader is None:
            return self._text_chunk(choice, piece.text, piece.tokens)
        return self._tool_chunks(choice, reader.push(piece.text), piece.tokens)

    def _text_chunk(self, choice: int, text: str, tokens: list[ShownToken]) -> bytes:
        if not text and not tokens:
            return b""
        return self._chunk(self._choice(choice, ChatDelta(content=text), tokens))

    def _tool_chunks(self, choice: int, parts: list[ToolText], tokens: list[ShownToken]) -> bytes:
        deltas = [_delta_of(part) for part in parts]
        if not deltas:
            return b"" if not tokens else self._text_chunk(choice, "", tokens)
        # All tokens go with the first chunk: which of them made which part is anybody's guess.
        first, *others = deltas
        chunks = [self._choice(choice, first, tokens), *(ChatChunkChoice(choice, delta) for delta in others)]
        return b"".join(self._chunk(chunk) for chunk in chunks)

    def _choice(self, choice: int, delta: ChatDelta, tokens: list[ShownToken]) -> ChatChunkChoice:
        look = self._look
        return ChatChunkChoice(
            choice,
            delta,
            None if look.logprobs is None else look.logprobs.chat(tokens),
            token_ids=[token.token_id for token in tokens] if look.with_token_ids else UNSET,
        )

    def _end(self, end: ChoiceEnd) -> bytes:
        reader = self._readers.get(end.choice)
        rest = b"" if reader is None else self._tool_chunks(end.choice, reader.finish(), [])
        has_called = reader is not None and reader.num_calls > 0
        reason = _finish_name(end, self._look, has_called=has_called)
        return rest + self._chunk(ChatChunkChoice(end.choice, ChatDelta(), None, reason, end.stop_reason))

    def _chunk(self, choice: ChatChunkChoice, prompt: list[int] | UnsetType = UNSET) -> bytes:
        look = self._look
        usage: Usage | UnsetType | None = UNSET
        if look.with_usage:
            usage = self._usage.usage() if look.with_usage_always else None
        return event(ChatChunk(*look.stamp, [choice], usage, prompt))


def whole_chat(look: ChatLook, generation: Generation, answer: WholeAnswer) -> bytes:
    """Return the body of an answer that was not streamed."""
    count = UsageCount(generation)
    for read in answer.prompts.values():
        count.add_prompt(read)
    count.num_output_tokens = sum(choice.ended.num_tokens for choice in answer.choices)
    (request,) = generation.requests
    told = answer.prompts[0].logprobs
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    if look.prompt_logprobs is not None and told is not None:
        prompt_logprobs = look.prompt_logprobs.prompt(request.prompt_token_ids, told)
    return encode(
        ChatCompletion(
            *look.stamp,
            [_whole_choice(look, index, choice) for index, choice in enumerate(answer.choices)],
            count.usage(),
            prompt_logprobs,
            request.prompt_token_ids if look.with_token_ids else UNSET,
        )
    )


def _whole_choice(look: ChatLook, index: int, choice: WholeChoice) -> ChatChoice:
    piece = choice.piece
    content: str | None = piece.text
    calls: list[ToolCall] = []
    if look.has_tools:
        reader = ToolCallReader()
        parts = reader.push(piece.text) + reader.finish()
        content = "".join([part.text for part in parts if isinstance(part, ContentText)]) or None
        calls = _calls_of(parts)
        content = content if calls else piece.text
    return ChatChoice(
        index,
        ChatMessage(content, calls or UNSET),
        _finish_name(choice.ended, look, has_called=bool(calls)),
        None if look.logprobs is None else look.logprobs.chat(piece.tokens),
        choice.ended.stop_reason,
        [token.token_id for token in piece.tokens] if look.with_token_ids else UNSET,
    )


def _calls_of(parts: list[ToolText]) -> list[ToolCall]:
    names = {part.index: part.name for part in parts if isinstance(part, CallStart)}
    arguments = dict.fromkeys(names, "")
    for part in parts:
        if isinstance(part, CallArguments):
            arguments[part.index] += part.text
    return [ToolCall(_call_id(), CalledFunction(name, arguments[index])) for index, name in names.items()]


def _delta_of(part: ToolText) -> ChatDelta:
    match part:
        case ContentText():
            return ChatDelta(content=part.text)
        case CallStart():
            function = CalledFunction(part.name, "")
            return ChatDelta(tool_calls=[ToolCallDelta(part.index, _call_id(), "function", function)])
        case CallArguments():
            return ChatDelta(tool_calls=[ToolCallDelta(part.index, function=CalledFunction(arguments=part.text))])


def _finish_name(end: ChoiceEnd, look: ChatLook, *, has_called: bool) -> FinishReasonName:
    """Return why a choice ended; a call that the client itself has named ends with stop, as with OpenAI."""
    if end.reason is FinishReason.STOP and has_called and not look.is_tool_named:
        return "tool_calls"
    return finish_name(end.reason)


def _call_id() -> str:
    return "call_" + secrets.token_hex(12)
