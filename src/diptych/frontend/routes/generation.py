"""Routes that answer: chat, completions, responses."""

import time
from typing import Any

from fastapi import FastAPI, Request
from pydantic import ValidationError
from starlette.responses import Response

from diptych.frontend.answer import WholeAnswer
from diptych.frontend.answering import Answering
from diptych.frontend.auth.key_check import tenant_of
from diptych.frontend.client_headers import ClientHeaders
from diptych.frontend.errors import describe_validation_error
from diptych.frontend.openai.chat import ChatCompletionRequest
from diptych.frontend.openai.chat_shape import ChatCompletion, ChatStream, whole_chat
from diptych.frontend.openai.completion_shape import Completion, CompletionStream, whole_completion
from diptych.frontend.openai.completions import CompletionRequest
from diptych.frontend.openai.messages import Conversation
from diptych.frontend.openai.response_objects import ResponseObject
from diptych.frontend.openai.responses import ResponseRequest
from diptych.frontend.openai.responses_shape import ResponseLook, ResponseMaker, whole_response
from diptych.frontend.openai.wire import LogprobWriter, encode
from diptych.frontend.openapi import answers
from diptych.frontend.request_translation import RequestTranslator
from diptych.frontend.response_store import ResponseStore, StoredResponse
from diptych.frontend.text.tokenizer import Tokenizer
from diptych.telemetry.rejections import OnRejected, noting


def add_chat_and_completions(
    app: FastAPI, answering: Answering, translator: RequestTranslator, on_rejected: OnRejected
) -> None:
    """Add POST /v1/chat/completions and /v1/completions."""

    @app.post("/v1/chat/completions", responses=answers(ChatCompletion, is_stream=True, can_generate=True))
    async def create_chat_completion(body: ChatCompletionRequest, http_request: Request) -> Response:
        """Answer a conversation."""
        with noting(on_rejected):
            generation, look = translator.from_chat(body, ClientHeaders.of(http_request.headers))
        if body.stream:
            return answering.stream(http_request, generation, ChatStream(look, generation))
        return await answering.whole(http_request, generation, lambda answer: whole_chat(look, generation, answer))

    @app.post("/v1/completions", responses=answers(Completion, is_stream=True, can_generate=True))
    async def create_completion(body: CompletionRequest, http_request: Request) -> Response:
        """Continue a text, or several."""
        with noting(on_rejected):
            generation, look = translator.from_completion(body, ClientHeaders.of(http_request.headers))
        if body.stream:
            return answering.stream(http_request, generation, CompletionStream(look, generation))
        return await answering.whole(
            http_request, generation, lambda answer: whole_completion(look, generation, answer)
        )


def add_responses(
    app: FastAPI,
    answering: Answering,
    translator: RequestTranslator,
    tokenizer: Tokenizer,
    on_rejected: OnRejected,
) -> None:
    """Add POST /v1/responses, and GET and DELETE of those that were stored."""
    store = ResponseStore()

    @app.post("/v1/responses", responses=answers(ResponseObject, is_stream=True, can_generate=True))
    async def create_response(body: ResponseRequest, http_request: Request) -> Response:
        """Go on with a conversation."""
        owner = _owner(http_request)
        earlier: Conversation = []
        with noting(on_rejected):
            if body.previous_response_id is not None:
                earlier = store.get(body.previous_response_id, owner, "previous_response_id").messages
            generation, _ = translator.from_chat(_chat_of(body, earlier), ClientHeaders.of(http_request.headers))
        writer = LogprobWriter(tokenizer, body.top_logprobs or 0) if body.wants_logprobs else None
        look = ResponseLook(body, int(time.time()), writer)

        def keep(maker: ResponseMaker) -> bytes:
            content = encode(maker.response())
            if body.store is not False:
                messages = [*earlier, *body.messages(), *maker.messages()]
                store.put(look.id, StoredResponse(content, messages, owner))
            return content

        if body.stream:
            shape = _KeepingStream(ResponseMaker(look, generation), keep)
            return answering.stream(http_request, generation, shape, shape.maker.error)

        def write(answer: WholeAnswer) -> bytes:
            return keep(whole_response(look, generation, answer))

        return await answering.whole(http_request, generation, write)

    @app.get("/v1/responses/{response_id}", responses=answers(ResponseObject, not_found=True))
    async def retrieve_response(response_id: str, http_request: Request) -> Response:
        """Return a stored response."""
        return Response(store.get(response_id, _owner(http_request)).content, media_type="application/json")

    @app.delete("/v1/responses/{response_id}", responses=answers(None, not_found=True))
    async def delete_response(response_id: str, http_request: Request) -> Response:
        """Forget a stored response."""
        store.delete(response_id, _owner(http_request))
        content = {"id": response_id, "object": "response", "deleted": True}
        return Response(encode(content), media_type="application/json")


class _KeepingStream:
    """A response's stream, which keeps the response at its end."""

    def __init__(self, maker: ResponseMaker, keep: Any) -> None:
        self.maker = maker
        self._keep = keep
        self.on_event = maker.on_event

    def closing(self) -> bytes:
        """Keep the response and return the last event."""
        self._keep(self.maker)
        return self.maker.closing()


def _owner(http_request: Request) -> str:
    """Return which key a request came with; where no keys are needed all are one."""
    tenant = tenant_of(http_request.scope)
    return "" if tenant is None else tenant.key.hash


def _chat_of(body: ResponseRequest, earlier: Conversation) -> ChatCompletionRequest:
    """Return the chat body of the same meaning.

    Raises: InvalidRequestError for what only shows there (two tools of one name, a choice of a tool that is not there).
    """
    chat = body.to_chat(earlier)
    try:
        return ChatCompletionRequest.model_validate(chat)
    except ValidationError as error:
        findings = [{**finding, "loc": ("body", *finding["loc"])} for finding in error.errors()]
        raise describe_validation_error(findings, chat) from None
