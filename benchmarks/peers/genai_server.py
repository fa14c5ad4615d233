"""Program: OpenAI's completions over HTTP, streamed or whole, from openvino_genai's continuous batching.

As thin as it can be, so that what is measured is the engine: one event a step, no queue of its own, and only those
parameters that a load generator sends (max_tokens, min_tokens, ignore_eos, temperature, stream, stream_options).
"""

import argparse
import contextlib
import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from diptych.core.errors import DiptychError, InvalidRequestError
from diptych.frontend.text.tokenizer import Tokenizer
from diptych.models import resolve
from diptych.models.folder import ModelFolder
from peers.genai_pipeline import Piece, Pipeline, PipelineSettings, Sampling, whole

LOOPBACK = "127.0.0.1"
DEFAULT_MAX_TOKENS = 16
"""OpenAI's, for completions."""
BAD_REQUEST, SERVER_ERROR = 400, 500


class _StreamOptions(msgspec.Struct):
    include_usage: bool = False


class _Body(msgspec.Struct):
    prompt: str | list[int] | None = None
    messages: list[dict[str, Any]] | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    min_tokens: Annotated[int, msgspec.Meta(ge=0)] = 0
    ignore_eos: bool = False
    temperature: Annotated[float, msgspec.Meta(ge=0)] | None = None
    stream: bool = False
    stream_options: _StreamOptions | None = None


class GenAIServer:
    """The routes."""

    def __init__(self, model: ModelFolder, pipeline: Pipeline) -> None:
        self._model = model
        self._pipeline = pipeline
        self._tokenizer = Tokenizer(model.path)
        self._context_length = model.context_length or 1 << 30

    def app(self) -> Starlette:
        """Return the ASGI application."""

        @contextlib.asynccontextmanager
        async def running(_app: Starlette) -> AsyncIterator[None]:
            self._pipeline.start()
            yield
            self._pipeline.close()

        return Starlette(
            routes=[
                Route("/health", self._on_health),
                Route("/v1/models", self._on_models),
                Route("/v1/completions", self._on_completion, methods=["POST"]),
                Route("/v1/chat/completions", self._on_completion, methods=["POST"]),
            ],
            lifespan=running,
        )

    async def _on_health(self, _request: Request) -> Response:
        return Response()

    async def _on_models(self, _request: Request) -> Response:
        model = {"id": self._model.name, "object": "model", "created": 0, "owned_by": "openvino"}
        return JSONResponse({"object": "list", "data": [model]})

    async def _on_completion(self, request: Request) -> Response:
        is_chat = request.url.path == "/v1/chat/completions"
        try:
            body = msgspec.json.decode(await request.body(), type=_Body)
            token_ids = self._prompt(body, is_chat)
        except (msgspec.MsgspecError, InvalidRequestError) as error:
            return _error(str(error))
        answer = _AnswerForm(self._model.name, is_chat, len(token_ids))
        pieces = self._pipeline.answer(token_ids, self._sampling(body, len(token_ids), is_chat))
        if body.stream:
            with_usage = body.stream_options is not None and body.stream_options.include_usage
            return StreamingResponse(self._events(answer, pieces, with_usage), media_type="text/event-stream")
        all_pieces = await whole(pieces)
        if all_pieces[-1].finish_reason == "error":
            return _error("the KV cache has no room for it", SERVER_ERROR)
        written = [token_id for piece in all_pieces for token_id in piece.token_ids]
        return JSONResponse(answer.whole(self._tokenizer.decode(written), all_pieces[-1].finish_reason, len(written)))

    async def _events(
        self, answer: "_AnswerForm", pieces: AsyncGenerator[Piece, None], with_usage: bool
    ) -> AsyncIterator[bytes]:
        detokenizer = self._tokenizer.start_answer()
        num_tokens = 0
        async with aclosing(pieces):  # a hang-up closes it, which ends the request
            async for piece in pieces:
                num_tokens += len(piece.token_ids)
                if piece.finish_reason == "error":
                    yield _event({"error": {"message": "the KV cache has no room for it", "type": "server_error"}})
                    return
                text = detokenizer.push(piece.token_ids)
                if piece.finish_reason is not None:
                    text += detokenizer.finish()
                yield _event(answer.piece(text, piece.finish_reason))
        if with_usage:
            yield _event({**answer.head(".chunk"), "choices": [], "usage": answer.usage(num_tokens)})
        yield b"data: [DONE]\n\n"

    def _prompt(self, body: _Body, is_chat: bool) -> list[int]:
        """Return a request's prompt as tokens. Raises: InvalidRequestError."""
        if is_chat:
            if not body.messages:
                raise InvalidRequestError("messages is missing")
            try:
                text = self._tokenizer.openvino.apply_chat_template(body.messages, add_generation_prompt=True)
            except (RuntimeError, TypeError) as error:
                raise InvalidRequestError(f"the chat template refuses the messages: {error}") from None
            token_ids = self._tokenizer.encode(text, add_special_tokens=False)
        elif isinstance(body.prompt, str):
            token_ids = self._tokenizer.encode(body.prompt)
        else:
            token_ids = body.prompt or []
        if not 0 < len(token_ids) < self._context_length:
            raise InvalidRequestError(f"a prompt has 1 to {self._context_length - 1} tokens, not {len(token_ids)}")
        return token_ids

    def _sampling(self, body: _Body, num_prompt_tokens: int, is_chat: bool) -> Sampling:
        most = self._context_length - num_prompt_tokens
        asked = body.max_completion_tokens or body.max_tokens or (most if is_chat else DEFAULT_MAX_TOKENS)
        temperature = 1.0 if body.temperature is None else body.temperature
        return Sampling(min(asked, most), min(body.min_tokens, most), body.ignore_eos, temperature)


class _AnswerForm:
    """One answer in OpenAI's form, for completions or for chat."""

    def __init__(self, model: str, is_chat: bool, num_prompt_tokens: int) -> None:
        self._is_chat = is_chat
        self._num_prompt_tokens = num_prompt_tokens
        self._is_first = True
        prefix = "chatcmpl" if is_chat else "cmpl"
        self._facts = {"id": f"{prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def head(self, suffix: str = "") -> dict[str, Any]:
        """Return what all objects of this answer begin with."""
        kind = f"chat.completion{suffix}" if self._is_chat else "text_completion"
        return {**self._facts, "object": kind}

    def piece(self, text: str, finish_reason: str | None) -> dict[str, Any]:
        """Return a chunk."""
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish_reason, "logprobs": None}
        if self._is_chat:
            choice["delta"] = {"role": "assistant", "content": text} if self._is_first else {"content": text}
        else:
            choice["text"] = text
        self._is_first = False
        return {**self.head(".chunk"), "choices": [choice]}

    def whole(self, text: str, finish_reason: str | None, num_tokens: int) -> dict[str, Any]:
        """Return all of an answer."""
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish_reason, "logprobs": None}
        if self._is_chat:
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        return {**self.head(), "choices": [choice], "usage": self.usage(num_tokens)}

    def usage(self, num_tokens: int) -> dict[str, int]:
        """Return the count of tokens."""
        total = self._num_prompt_tokens + num_tokens
        return {"prompt_tokens": self._num_prompt_tokens, "completion_tokens": num_tokens, "total_tokens": total}


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


def _error(text: str, status: int = BAD_REQUEST) -> Response:
    kind = "invalid_request_error" if status == BAD_REQUEST else "server_error"
    return JSONResponse({"error": {"message": text, "type": kind, "code": status}}, status)


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True, help="where to listen, on 127.0.0.1")
    parser.add_argument("--model", required=True, help="as for `diptych serve`; converted already")
    parser.add_argument("--threads", type=int, required=True, help="that compute")
    parser.add_argument("--kv-gb", type=int, required=True, help="KV cache")
    parser.add_argument("--max-num-seqs", type=int, required=True, help="answers at once")
    parser.add_argument("--max-num-batched-tokens", type=int, required=True, help="tokens of a step, prompts' and all")
    options = parser.parse_args()
    settings = PipelineSettings(options.threads, options.kv_gb, options.max_num_seqs, options.max_num_batched_tokens)
    try:
        model = resolve(options.model)
    except DiptychError as error:
        parser.error(str(error))
    server = GenAIServer(model, Pipeline(model.path, settings, model.eos_token_ids))
    uvicorn.run(server.app(), host=LOOPBACK, port=options.port, access_log=False, log_level="warning")


if __name__ == "__main__":
    _main()
