"""Routes about text and models: tokens, the one model that is served, versions."""

import time

from fastapi import FastAPI
from msgspec import UNSET, Struct, UnsetType
from starlette.responses import Response

from diptych.core.version import __version__
from diptych.frontend.openai.tokenize import DetokenizeRequest, TokenizeRequest
from diptych.frontend.openai.wire import encode
from diptych.frontend.openapi import answers
from diptych.frontend.request_translation import RequestTranslator
from diptych.frontend.settings import FrontendSettings
from diptych.frontend.text.tokenizer import Tokenizer


class ModelCard(Struct, frozen=True):
    """An entry of /v1/models."""

    id: str
    created: int
    max_model_len: int
    object: str = "model"
    owned_by: str = "diptych"


class ModelList(Struct, frozen=True):
    """Answer of /v1/models."""

    data: list[ModelCard]
    object: str = "list"


class Tokens(Struct, frozen=True):
    """Answer of /tokenize."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | UnsetType = UNSET


class Detokenized(Struct, frozen=True):
    """Answer of /detokenize."""

    prompt: str


class Version(Struct, frozen=True):
    """Answer of /version."""

    version: str


def add_text_routes(
    app: FastAPI, translator: RequestTranslator, tokenizer: Tokenizer, settings: FrontendSettings
) -> None:
    """Add /v1/models, /tokenize, /detokenize and /version."""
    card = ModelCard(settings.model_name, int(time.time()), settings.max_model_len)

    @app.get("/v1/models", responses=answers(ModelList))
    async def list_models() -> Response:
        """List the one model that is served."""
        return _json(ModelList([card]))

    @app.get("/v1/models/{model:path}", responses=answers(ModelCard, not_found=True))
    async def retrieve_model(model: str) -> Response:
        """Describe a model."""
        translator.check_model(model)
        return _json(card)

    @app.post("/tokenize", responses=answers(Tokens, has_body=True, not_found=True))
    async def tokenize(body: TokenizeRequest) -> Response:
        """Turn a text or a conversation into tokens."""
        if body.model is not None:
            translator.check_model(body.model)
        if body.prompt is not None:
            token_ids = tokenizer.encode(body.prompt, add_special_tokens=body.add_special_tokens is not False)
        else:
            token_ids = translator.chat_token_ids(body, body.tools or ())
        texts: list[str] | UnsetType = UNSET
        if body.return_token_strs:
            texts = [tokenizer.token_bytes(token_id).decode("utf-8", "replace") for token_id in token_ids]
        return _json(Tokens(len(token_ids), settings.max_model_len, token_ids, texts))

    @app.post("/detokenize", responses=answers(Detokenized, has_body=True, not_found=True))
    async def detokenize(body: DetokenizeRequest) -> Response:
        """Turn tokens into a text; special tokens show."""
        if body.model is not None:
            translator.check_model(body.model)
        token_ids = translator.checked_token_ids(body.tokens, "tokens")
        return _json(Detokenized(tokenizer.decode(token_ids, skip_special_tokens=False)))

    @app.get("/version", responses=answers(Version))
    async def version() -> Response:
        """Name the version of this server."""
        return _json(Version(__version__))


def _json(content: Struct) -> Response:
    return Response(encode(content), media_type="application/json")
