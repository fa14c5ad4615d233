"""How a response looks: whole, and as the events of a stream."""

import secrets
from typing import Any

from diptych.core.errors import RequestError
from diptych.core.events import FinishReason
from diptych.frontend.answer import AnswerEvent, ChoiceEnd, Delta, Generation, PromptRead, WholeAnswer
from diptych.frontend.openai.messages import Conversation
from diptych.frontend.openai.response_objects import (
    CachedTokens,
    IncompleteDetails,
    OutputCall,
    OutputItem,
    OutputMessage,
    ReasoningTokens,
    ResponseObject,
    ResponseUsage,
)
from diptych.frontend.openai.response_output import OutputBuilder
from diptych.frontend.openai.responses import ResponseRequest
from diptych.frontend.openai.wire import LogprobWriter, UsageCount, encode


class ResponseLook:
    """What is the same in all objects of one response."""

    def __init__(self, body: ResponseRequest, created_at: int, logprobs: LogprobWriter | None) -> None:
        self.id = f"resp_{secrets.token_hex(24)}"
        self.body = body
        self.logprobs = logprobs
        self._created_at = created_at

    def response(
        self,
        status: str,
        output: list[OutputItem],
        usage: ResponseUsage | None = None,
        incomplete_reason: str | None = None,
    ) -> ResponseObject:
        """Return the response as it is at a moment."""
        body = self.body
        dumped = body.model_dump(include={"text", "tool_choice", "tools"}, exclude_none=True, by_alias=True)
        return ResponseObject(
            id=self.id,
            created_at=self._created_at,
            model=body.model,
            status=status,
            output=output,
            usage=usage,
            incomplete_details=None if incomplete_reason is None else IncompleteDetails(incomplete_reason),
            error=None,
            instructions=body.instructions,
            max_output_tokens=body.max_output_tokens,
            metadata=body.metadata or {},
            parallel_tool_calls=body.parallel_tool_calls is not False,
            previous_response_id=body.previous_response_id,
            store=body.store is not False,
            temperature=1.0 if body.temperature is None else body.temperature,
            text={"format": {"type": "text"}} | dumped.get("text", {}),
            tool_choice=dumped.get("tool_choice", "auto"),
            tools=[{"parameters": None, "strict": True, **tool} for tool in dumped.get("tools", [])],
            top_logprobs=body.top_logprobs or 0,
            top_p=1.0 if body.top_p is None else body.top_p,
            user=body.user,
        )


class ResponseMaker:
    """Makes one response out of what happens to its answer; `events` has what a stream sends meanwhile."""

    def __init__(self, look: ResponseLook, generation: Generation) -> None:
        self._look = look
        self._usage = UsageCount(generation)
        self._events: list[bytes] = []
        self._num_events = 0
        self._output = OutputBuilder(self._emit, look.logprobs, has_tools=bool(look.body.tools))
        self._end: ChoiceEnd | None = None

    def on_event(self, happened: AnswerEvent) -> bytes:
        """Return what to send when something has happened to the answer."""
        match happened:
            case PromptRead():
                self._usage.add_prompt(happened)
                for kind in ("response.created", "response.in_progress"):
                    self._emit(kind, response=self._look.response("in_progress", []))
            case Delta():
                self._usage.num_output_tokens += happened.piece.num_tokens
                self._output.push(happened.piece.text, happened.piece.tokens)
            case ChoiceEnd():
                self._end = happened
                self._output.finish(is_complete=happened.reason is FinishReason.STOP)
        return self._take_events()

    def closing(self) -> bytes:
        """Return the last event."""
        response = self.response()
        self._emit(f"response.{response.status}", response=response)
        return self._take_events()

    def response(self) -> ResponseObject:
        """Return the response, whose answer is over."""
        assert self._end is not None, "the answer is not over"
        is_complete = self._end.reason is FinishReason.STOP
        return self._look.response(
            "completed" if is_complete else "incomplete",
            self._output.items,
            self._usage_object(),
            None if is_complete else "max_output_tokens",
        )

    def messages(self) -> Conversation:
        """Return the output as messages of a chat, for the conversation to go on with."""
        texts = [item.content[0].text for item in self._output.items if isinstance(item, OutputMessage)]
        calls = [
            {"id": item.call_id, "type": "function", "function": {"name": item.name, "arguments": item.arguments}}
            for item in self._output.items
            if isinstance(item, OutputCall)
        ]
        return [{"role": "assistant", "content": "".join(texts), "tool_calls": calls or None}]

    def _usage_object(self) -> ResponseUsage:
        usage = self._usage.usage()
        return ResponseUsage(
            usage.prompt_tokens,
            CachedTokens(usage.prompt_tokens_details.cached_tokens),
            usage.completion_tokens,
            ReasoningTokens(),
            usage.total_tokens,
        )

    def error(self, error: RequestError) -> bytes:
        """Return the event that ends a stream which failed after it began."""
        self._emit("error", code=error.code or error.kind, message=str(error), param=error.param)
        return self._take_events()

    def _emit(self, kind: str, **fields: Any) -> None:
        content = encode({"type": kind, "sequence_number": self._num_events, **fields})
        self._events.append(b"event: " + kind.encode() + b"\ndata: " + content + b"\n\n")
        self._num_events += 1

    def _take_events(self) -> bytes:
        events, self._events = b"".join(self._events), []
        return events


def whole_response(look: ResponseLook, generation: Generation, answer: WholeAnswer) -> ResponseMaker:
    """Return the maker of a response that was not streamed, at its end."""
    maker = ResponseMaker(look, generation)
    (choice,) = answer.choices
    maker.on_event(answer.prompts[0])
    maker.on_event(Delta(0, choice.piece))
    maker.on_event(choice.ended)
    return maker
