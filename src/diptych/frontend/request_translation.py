"""A checked HTTP body to a `core.request.Request`: text to token ids, defaults to numbers, limits applied.

After this step nobody sees text until the answer's tokens come back.
"""

import secrets
from collections.abc import Sequence
from typing import Literal

from diptych.core.clock import Clock
from diptych.core.errors import InvalidRequestError, NotFoundError
from diptych.core.ids import RequestId
from diptych.core.request import Request, SamplingParams
from diptych.frontend.openai_requests import ChatCompletionRequest, CompletionRequest
from diptych.frontend.settings import FrontendSettings
from diptych.frontend.tokenizer import Tokenizer

DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's default for this route (a chat's is all that the context has left)."""
SEED_BITS = 63
"""Seeds travel as non-negative 64-bit integers; a client's negative one is mapped among them."""


class RequestTranslator:
    """Builds requests for one model."""

    def __init__(self, tokenizer: Tokenizer, settings: FrontendSettings, clock: Clock) -> None:
        self._tokenizer = tokenizer
        self._settings = settings
        self._clock = clock

    def from_chat(self, body: ChatCompletionRequest) -> Request:
        """Return what a chat body asks for.

        Raises: InvalidRequestError, NotFoundError.
        """
        arrived_s = self._clock.now_s()
        self.check_model(body.model)
        messages = [{"role": message.role, "content": message.text} for message in body.messages]
        self._check_text_length([message["content"] for message in messages], "messages")
        token_ids = self._tokenizer.encode_chat(messages)
        max_tokens = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
        max_tokens_param = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
        max_tokens = self._max_tokens(len(token_ids), max_tokens, "messages", max_tokens_param)
        return self._build("chatcmpl", body, token_ids, max_tokens, arrived_s)

    def from_completion(self, body: CompletionRequest) -> Request:
        """Return what a completion body asks for.

        Raises: InvalidRequestError, NotFoundError.
        """
        arrived_s = self._clock.now_s()
        self.check_model(body.model)
        token_ids = self._prompt_token_ids(body.prompt)
        max_tokens = self._max_tokens(len(token_ids), body.max_tokens, "prompt", "max_tokens")
        if body.max_tokens is None:
            max_tokens = min(max_tokens, DEFAULT_COMPLETION_TOKENS)
        return self._build("cmpl", body, token_ids, max_tokens, arrived_s)

    def check_model(self, name: str) -> None:
        """Raise NotFoundError unless `name` is the served model's."""
        if name != self._settings.model_name:
            raise NotFoundError(
                f"the model {name!r} does not exist; this server serves {self._settings.model_name!r}",
                param="model",
                code="model_not_found",
            )

    def _prompt_token_ids(self, prompt: str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]]) -> list[int]:
        if isinstance(prompt, str):
            self._check_text_length([prompt], "prompt")
            return self._tokenizer.encode(prompt)
        token_ids = [token_id for token_id in prompt if isinstance(token_id, int)]
        vocab_size = self._tokenizer.vocab_size
        if not all(0 <= token_id < vocab_size for token_id in token_ids):
            raise InvalidRequestError(f"token ids must be from 0 to {vocab_size - 1}", param="prompt")
        return token_ids

    def _check_text_length(self, texts: Sequence[str], param: str) -> None:
        """Refuse what is too long in any case, before seconds are spent on tokenizing it."""
        num_tokens = self._tokenizer.fewest_tokens(sum(len(text.encode()) for text in texts))
        if num_tokens >= self._settings.max_model_len:
            raise _context_length_error(self._settings.max_model_len, f"at least {num_tokens}", param)

    def _max_tokens(self, num_prompt_tokens: int, asked: int | None, prompt_param: str, max_tokens_param: str) -> int:
        """Return how many tokens the answer may have: what was asked for, or all that is left."""
        if num_prompt_tokens == 0:
            raise InvalidRequestError("the prompt is empty; give at least one token", param=prompt_param)
        max_model_len = self._settings.max_model_len
        num_left = max_model_len - num_prompt_tokens
        if num_left < 1:
            raise _context_length_error(max_model_len, str(num_prompt_tokens), prompt_param)
        if asked is None:
            return num_left
        if asked > num_left:
            raise InvalidRequestError(
                f"the model's context is {max_model_len} tokens; the prompt has {num_prompt_tokens} and "
                f"{max_tokens_param} is {asked}: ask for {num_left} at most, or shorten the prompt",
                param=max_tokens_param,
                code="context_length_exceeded",
            )
        return asked

    def _build(
        self,
        kind: Literal["chatcmpl", "cmpl"],
        body: ChatCompletionRequest | CompletionRequest,
        token_ids: list[int],
        max_tokens: int,
        arrived_s: float,
    ) -> Request:
        return Request(
            request_id=RequestId(f"{kind}-{secrets.token_hex(16)}"),
            prompt_token_ids=token_ids,
            sampling=_sampling_params(body, max_tokens),
            deadline_s=arrived_s + self._settings.request_timeout_s,
            arrived_s=arrived_s,
        )


def _sampling_params(body: ChatCompletionRequest | CompletionRequest, max_tokens: int) -> SamplingParams:
    seed = secrets.randbits(SEED_BITS) if body.seed is None else body.seed % 2**SEED_BITS
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=1.0 if body.temperature is None else float(body.temperature),
        top_p=1.0 if body.top_p is None else float(body.top_p),
        top_k=max(body.top_k or 0, 0),
        min_p=float(body.min_p or 0.0),
        seed=seed,
        ignore_eos=bool(body.ignore_eos),
    )


def _context_length_error(max_model_len: int, num_tokens: str, param: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"the model's context is {max_model_len} tokens and the prompt has {num_tokens}, "
        "which leaves none for the answer; shorten it",
        param=param,
        code="context_length_exceeded",
    )
