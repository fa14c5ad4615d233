"""A checked HTTP body to what is to be generated: text to token ids, defaults to numbers, limits applied.

After this step nobody sees text until the answer's tokens come back.
"""

import secrets
import time
from collections.abc import Sequence
from typing import Literal

from diptych.core.clock import Clock
from diptych.core.errors import InvalidRequestError, NotFoundError
from diptych.core.ids import RequestId
from diptych.core.request import Request, SamplingParams
from diptych.frontend import client_headers, grammar
from diptych.frontend.answer import Generation
from diptych.frontend.client_headers import ClientHeaders
from diptych.frontend.openai.chat import ChatCompletionRequest
from diptych.frontend.openai.chat_shape import ChatLook
from diptych.frontend.openai.completion_shape import CompletionLook
from diptych.frontend.openai.completions import CompletionRequest, Prompt
from diptych.frontend.openai.generation import GenerationBody
from diptych.frontend.openai.messages import ChatMessage
from diptych.frontend.openai.tokenize import TokenizeRequest
from diptych.frontend.openai.tools import Tool
from diptych.frontend.openai.wire import LogprobWriter, Stamp
from diptych.frontend.sampling_translation import SamplingTranslator
from diptych.frontend.settings import FrontendSettings
from diptych.frontend.text.chat_template import ChatTemplate
from diptych.frontend.text.tokenizer import Tokenizer

DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's default for this route (a chat's is all that the context has left)."""


class RequestTranslator:
    """Builds requests for one model."""

    def __init__(self, tokenizer: Tokenizer, settings: FrontendSettings, clock: Clock) -> None:
        self._tokenizer = tokenizer
        self._template = ChatTemplate(tokenizer.openvino, settings.chat_template)
        self._sampling = SamplingTranslator(tokenizer, settings)
        self._settings = settings
        self._clock = clock

    # Chat

    def from_chat(
        self, body: ChatCompletionRequest, headers: ClientHeaders = client_headers.NONE
    ) -> tuple[Generation, ChatLook]:
        """Return what a chat body asks for, and how its answer shall look.

        Raises: InvalidRequestError, NotFoundError.
        """
        arrived_s = self._clock.now_s()
        self.check_model(body.model)
        if body.stream and body.prompt_logprobs is not None:
            raise InvalidRequestError("prompt_logprobs come with whole answers only", param="prompt_logprobs")
        offered = body.offered
        prompt = self._truncated(self.chat_token_ids(body, offered.tools), body)
        asked = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
        asked_param = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
        params = self._sampling.params(
            body,
            max_tokens=self._max_tokens(len(prompt), asked, "messages", asked_param),
            num_logprobs=body.num_logprobs,
            num_prompt_logprobs=body.prompt_logprobs,
            grammar=self._grammar(body),
        )
        base = self._base_id("chatcmpl", body, headers)
        wants_tokens = params.num_logprobs is not None or bool(body.return_token_ids)
        generation = Generation(
            [self._request(base, body, prompt, params, arrived_s, headers)],
            self._sampling.text_options(body, wants_tokens=wants_tokens),
        )
        return generation, ChatLook(
            stamp=Stamp(base, int(time.time()), body.model, self._settings.system_fingerprint),
            logprobs=self._writer(body.num_logprobs, body),
            prompt_logprobs=self._writer(body.prompt_logprobs, body),
            with_usage=_wants_usage(body),
            with_usage_always=_wants_usage_always(body),
            with_token_ids=bool(body.return_token_ids),
            has_tools=bool(offered.tools),
            is_tool_named=offered.is_named,
        )

    def chat_token_ids(self, body: ChatCompletionRequest | TokenizeRequest, tools: Sequence[Tool]) -> list[int]:
        """Return the tokens of a conversation, up to where the assistant's next words go.

        Raises: InvalidRequestError if the model's template refuses it or it is too long.
        """
        messages: Sequence[ChatMessage] = body.messages or ()
        self._check_text_length([message.text for message in messages], "messages")
        adds_prompt = (
            not body.continue_final_message if body.add_generation_prompt is None else body.add_generation_prompt
        )
        text = self._template.render(
            [message.to_template() for message in messages],
            tools=[tool.model_dump(exclude_none=True) for tool in tools],
            add_generation_prompt=adds_prompt,
            continue_final_message=bool(body.continue_final_message),
            variables=body.chat_template_kwargs,
        )
        self._check_text_length([text], "messages")  # templates write tools, too
        return self._tokenizer.encode(text, add_special_tokens=bool(body.add_special_tokens))

    def _grammar(self, body: ChatCompletionRequest) -> str | None:
        if body.structure is not None:
            return grammar.of_structured_outputs(body.structure)
        of_tools = grammar.of_tools(body.offered, body.response_format)
        return of_tools if of_tools is not None else grammar.of_response_format(body.response_format)

    # Completions

    def from_completion(
        self, body: CompletionRequest, headers: ClientHeaders = client_headers.NONE
    ) -> tuple[Generation, CompletionLook]:
        """Return what a completion body asks for, and how its answer shall look.

        Raises: InvalidRequestError, NotFoundError.
        """
        arrived_s = self._clock.now_s()
        self.check_model(body.model)
        is_prompt_all = body.max_tokens == 0
        prompts = [self._truncated(self._prompt_token_ids(prompt, body), body) for prompt in body.prompts]
        of_structure = None if body.structure is None else grammar.of_structured_outputs(body.structure)
        with_prompt = [body.prompt_logprobs, body.logprobs if body.echo else None]
        base = self._base_id("cmpl", body, headers)
        requests: list[Request] = []
        for index, prompt in enumerate(prompts):
            params = self._sampling.params(
                body,
                max_tokens=self._completion_tokens(len(prompt), body),
                num_logprobs=body.logprobs,
                num_prompt_logprobs=max((number for number in with_prompt if number is not None), default=None),
                grammar=of_structure or grammar.of_response_format(body.response_format),
            )
            request_id = base if len(prompts) == 1 else f"{base}-{index}"
            requests.append(self._request(request_id, body, prompt, params, arrived_s, headers))
        wants_tokens = body.logprobs is not None or bool(body.return_token_ids)
        generation = Generation(requests, self._sampling.text_options(body, wants_tokens=wants_tokens))
        return generation, CompletionLook(
            stamp=Stamp(base, int(time.time()), body.model, self._settings.system_fingerprint),
            logprobs=self._writer(body.logprobs, body),
            prompt_logprobs=self._writer(body.prompt_logprobs, body),
            echoes=self._echoes(body, prompts) if body.echo else None,
            is_prompt_all=is_prompt_all,
            with_usage=_wants_usage(body),
            with_usage_always=_wants_usage_always(body),
            with_token_ids=bool(body.return_token_ids),
        )

    def _prompt_token_ids(self, prompt: Prompt, body: CompletionRequest) -> list[int]:
        if not isinstance(prompt, str):
            return self.checked_token_ids(prompt, "prompt")
        self._check_text_length([prompt], "prompt")
        return self._tokenizer.encode(prompt, add_special_tokens=body.add_special_tokens is not False)

    def checked_token_ids(self, token_ids: list[int], param: str) -> list[int]:
        """Return token ids that the model has.

        Raises: InvalidRequestError for others.
        """
        vocab_size = self._tokenizer.vocab_size
        if not all(0 <= token_id < vocab_size for token_id in token_ids):
            raise InvalidRequestError(f"token ids must be from 0 to {vocab_size - 1}", param=param)
        return token_ids

    def _echoes(self, body: CompletionRequest, prompts: Sequence[list[int]]) -> list[str]:
        """Return each prompt's text: as it came, or what its tokens say."""
        is_whole = body.truncate_prompt_tokens is None
        return [
            prompt if isinstance(prompt, str) and is_whole else self._tokenizer.decode(token_ids)
            for prompt, token_ids in zip(body.prompts, prompts, strict=True)
        ]

    def _completion_tokens(self, num_prompt_tokens: int, body: CompletionRequest) -> int:
        if body.max_tokens is None:
            left = self._max_tokens(num_prompt_tokens, None, "prompt", "max_tokens")
            return min(left, max(DEFAULT_COMPLETION_TOKENS, body.min_tokens or 0))
        # With echo alone one token is sampled nevertheless, and never shown.
        return self._max_tokens(num_prompt_tokens, max(body.max_tokens, 1), "prompt", "max_tokens")

    # Both

    def check_model(self, name: str) -> None:
        """Raise NotFoundError unless `name` is the served model's."""
        if name != self._settings.model_name:
            raise NotFoundError(
                f"the model {name!r} does not exist; this server serves {self._settings.model_name!r}",
                param="model",
                code="model_not_found",
            )

    def _check_text_length(self, texts: Sequence[str], param: str) -> None:
        """Refuse what is too long in any case, before seconds are spent on tokenizing it."""
        num_tokens = self._tokenizer.fewest_tokens(sum(len(text.encode()) for text in texts))
        if num_tokens >= self._settings.max_model_len:
            raise _context_length_error(self._settings.max_model_len, f"at least {num_tokens}", param)

    def _truncated(self, token_ids: list[int], body: GenerationBody) -> list[int]:
        """Keep the end of a prompt, where so asked."""
        num_kept = body.truncate_prompt_tokens
        if num_kept is None:
            return token_ids
        if num_kept == -1:
            num_kept = max(self._settings.max_model_len - max(body.max_tokens or 1, 1), 1)
        return token_ids[-num_kept:] if num_kept else []

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

    def _writer(self, num_top: int | None, body: GenerationBody) -> LogprobWriter | None:
        if num_top is None:
            return None
        return LogprobWriter(self._tokenizer, num_top, as_token_ids=bool(body.return_tokens_as_token_ids))

    @staticmethod
    def _base_id(kind: Literal["chatcmpl", "cmpl"], body: GenerationBody, headers: ClientHeaders) -> str:
        if body.request_id is not None or headers.request_id is None:
            return f"{kind}-{body.request_id or secrets.token_hex(16)}"
        # Who tries again sends the same header: that must not clash with what is left of the first try.
        return f"{kind}-{headers.request_id}-{secrets.token_hex(4)}"

    def _request(  # noqa: PLR0913, PLR0917  all that makes a request
        self,
        request_id: str,
        body: GenerationBody,
        prompt: list[int],
        params: SamplingParams,
        arrived_s: float,
        headers: ClientHeaders,
    ) -> Request:
        return Request(
            request_id=RequestId(request_id),
            prompt_token_ids=prompt,
            sampling=params,
            num_choices=body.num_choices,
            cache_salt=body.cache_salt or "",
            traceparent=headers.traceparent,
            deadline_s=arrived_s + self._settings.request_timeout_s,
            arrived_s=arrived_s,
        )


def _wants_usage(body: GenerationBody) -> bool:
    return body.stream_options is not None and bool(body.stream_options.include_usage)


def _wants_usage_always(body: GenerationBody) -> bool:
    return _wants_usage(body) and body.stream_options is not None and bool(body.stream_options.continuous_usage_stats)


def _context_length_error(max_model_len: int, num_tokens: str, param: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"the model's context is {max_model_len} tokens and the prompt has {num_tokens}, "
        "which leaves none for the answer; shorten it",
        param=param,
        code="context_length_exceeded",
    )
