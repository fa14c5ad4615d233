"""How to sample, from a checked body: defaults to numbers, texts to tokens, limits applied."""

import secrets
from collections.abc import Sequence

from diptych.core.errors import InvalidRequestError
from diptych.core.request import SamplingParams
from diptych.frontend.openai.generation import GenerationBody
from diptych.frontend.settings import FrontendSettings
from diptych.frontend.text.choice_text import TextOptions
from diptych.frontend.text.tokenizer import Tokenizer

SEED_BITS = 63
"""Seeds travel as non-negative 64-bit integers; a client's negative one is mapped among them."""


class SamplingTranslator:
    """Builds sampling parameters and text options for one model."""

    def __init__(self, tokenizer: Tokenizer, settings: FrontendSettings) -> None:
        self._tokenizer = tokenizer
        self._settings = settings

    def params(
        self,
        body: GenerationBody,
        *,
        max_tokens: int,
        num_logprobs: int | None,
        num_prompt_logprobs: int | None,
        grammar: str | None,
    ) -> SamplingParams:
        """Return how to sample.

        Raises: InvalidRequestError for tokens that the model does not have.
        """
        if (body.min_tokens or 0) > max_tokens:
            raise InvalidRequestError(
                f"min_tokens is {body.min_tokens}, but the answer may have {max_tokens} tokens at most",
                param="min_tokens",
            )
        self._check_tokens(list(body.logit_bias or ()), "logit_bias")
        self._check_tokens(body.allowed_token_ids or (), "allowed_token_ids")
        self._check_tokens(body.stop_token_ids or (), "stop_token_ids")
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=1.0 if body.temperature is None else float(body.temperature),
            top_p=1.0 if body.top_p is None else float(body.top_p),
            top_k=max(body.top_k or 0, 0),
            min_p=float(body.min_p or 0.0),
            seed=secrets.randbits(SEED_BITS) if body.seed is None else body.seed % 2**SEED_BITS,
            presence_penalty=float(body.presence_penalty or 0.0),
            frequency_penalty=float(body.frequency_penalty or 0.0),
            repetition_penalty=float(body.repetition_penalty or 1.0),
            logit_bias=body.logit_bias or {},
            allowed_token_ids=body.allowed_token_ids,
            bad_words=self._bad_words(body.bad_words or ()),
            grammar=grammar,
            min_tokens=body.min_tokens or 0,
            ignore_eos=bool(body.ignore_eos),
            stop_token_ids=body.stop_token_ids or [],
            num_logprobs=num_logprobs,
            num_prompt_logprobs=num_prompt_logprobs,
        )

    def text_options(self, body: GenerationBody, *, wants_tokens: bool) -> TextOptions:
        """Return how the answers' tokens become text."""
        stop_token_ids = frozenset(body.stop_token_ids or ())
        eos_token_ids = frozenset() if body.ignore_eos else self._settings.eos_token_ids
        return TextOptions(
            stop_strings=body.stop_strings,
            ending_token_ids=stop_token_ids | eos_token_ids,
            stop_token_ids=stop_token_ids - eos_token_ids,
            is_ending_shown=bool(body.include_stop_str_in_output),
            skip_special_tokens=body.skip_special_tokens is None or body.skip_special_tokens,
            wants_tokens=wants_tokens,
        )

    def _check_tokens(self, token_ids: Sequence[int], param: str) -> None:
        vocab_size = self._tokenizer.vocab_size
        if not all(0 <= token_id < vocab_size for token_id in token_ids):
            raise InvalidRequestError(f"token ids must be from 0 to {vocab_size - 1}", param=param)

    def _bad_words(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of texts that may not come, as they are written at the beginning and after a space."""
        words: list[list[int]] = []
        for text in texts:
            for written in (text, " " + text.lstrip()):
                token_ids = self._tokenizer.encode(written, add_special_tokens=False)
                if token_ids and token_ids not in words:
                    words.append(token_ids)
        return words
