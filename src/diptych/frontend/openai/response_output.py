"""The output of a response as it grows: messages and calls, each opened, filled and closed."""

import secrets
from collections.abc import Callable
from typing import Any

from msgspec import UNSET, UnsetType

from diptych.frontend.openai.response_objects import OutputCall, OutputItem, OutputMessage, OutputText
from diptych.frontend.openai.wire import LogprobWriter, TokenLogprob
from diptych.frontend.text.choice_text import ShownToken
from diptych.frontend.text.tool_calls import CallArguments, CallStart, ContentText, ToolCallReader, ToolText


class OutputBuilder:
    """Puts the items of an output together, and tells of each change as an event of the stream."""

    def __init__(self, emit: Callable[..., None], logprobs: LogprobWriter | None, *, has_tools: bool) -> None:
        """`emit(type, **fields)` takes each event; `logprobs`: None if they are not asked for."""
        self._emit = emit
        self._logprobs = logprobs
        self._reader = ToolCallReader() if has_tools else None
        self._text = ""
        self._tokens: list[ShownToken] = []
        self._item_id = ""
        self._call: tuple[str, str] | None = None
        """Call id and name of the item that is being made, if it is a call."""
        self._is_open = False
        self.items: list[OutputItem] = []

    def push(self, text: str, tokens: list[ShownToken]) -> None:
        """Take the next piece of the answer."""
        self._take([ContentText(text)] if self._reader is None else self._reader.push(text), tokens)

    def finish(self, *, is_complete: bool) -> None:
        """The answer is over: close what is open; an answer without any text is an empty message."""
        if self._reader is not None:
            self._take(self._reader.finish(), [])
        if not self.items and not self._is_open:
            self._open_message()
        self._close("completed" if is_complete else "incomplete")

    def _take(self, parts: list[ToolText], tokens: list[ShownToken]) -> None:
        for part in parts:
            match part:
                case ContentText():
                    self._on_text(part.text, tokens)
                    tokens = []
                case CallStart():
                    self._close("completed")
                    self._open_call(part.name)
                case CallArguments():
                    self._text += part.text
                    self._emit("response.function_call_arguments.delta", **self._where(), delta=part.text)

    def _on_text(self, text: str, tokens: list[ShownToken]) -> None:
        if not text and not tokens:
            return
        if not self._is_open or self._call is not None:
            self._close("completed")
            self._open_message()
        self._text += text
        self._tokens += tokens
        told = self._told(tokens)
        logprobs = [] if told is UNSET else told
        self._emit("response.output_text.delta", **self._where(), content_index=0, delta=text, logprobs=logprobs)

    def _told(self, tokens: list[ShownToken]) -> list[TokenLogprob] | UnsetType:
        """Return the log-probabilities of tokens, where asked for."""
        return UNSET if self._logprobs is None else self._logprobs.chat(tokens).content

    def _where(self) -> dict[str, Any]:
        return {"item_id": self._item_id, "output_index": len(self.items)}

    def _open_message(self) -> None:
        self._open(f"msg_{secrets.token_hex(24)}", None)
        item = OutputMessage(self._item_id, "in_progress", [])
        self._emit("response.output_item.added", output_index=len(self.items), item=item)
        self._emit("response.content_part.added", **self._where(), content_index=0, part=OutputText(""))

    def _open_call(self, name: str) -> None:
        self._open(f"fc_{secrets.token_hex(24)}", (f"call_{secrets.token_hex(12)}", name))
        item = OutputCall(self._item_id, *self._called, "", "in_progress")
        self._emit("response.output_item.added", output_index=len(self.items), item=item)

    @property
    def _called(self) -> tuple[str, str]:
        assert self._call is not None
        return self._call

    def _open(self, item_id: str, call: tuple[str, str] | None) -> None:
        self._item_id, self._call, self._text, self._tokens, self._is_open = item_id, call, "", [], True

    def _close(self, status: str) -> None:
        if not self._is_open:
            return
        item: OutputItem
        if self._call is None:
            part = OutputText(self._text, self._told(self._tokens))
            logprobs = [] if part.logprobs is UNSET else part.logprobs
            where = {**self._where(), "content_index": 0}
            self._emit("response.output_text.done", **where, text=self._text, logprobs=logprobs)
            self._emit("response.content_part.done", **where, part=part)
            item = OutputMessage(self._item_id, status, [part])
        else:
            _, name = self._call
            self._emit("response.function_call_arguments.done", **self._where(), name=name, arguments=self._text)
            item = OutputCall(self._item_id, *self._call, self._text, status)
        self._emit("response.output_item.done", output_index=len(self.items), item=item)
        self.items.append(item)
        self._is_open = False
