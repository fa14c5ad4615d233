"""What a request does to logits before the draw: tokens that it rules out, biases, penalties for what was said."""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from diptych.core.request import SamplingParams
from diptych.worker.sampling.ranking import Floats

NEVER = np.float32(-np.inf)


class TokenCounts:
    """How often each token came, as arrays that can be applied at once."""

    def __init__(self, token_ids: Iterable[int] = ()) -> None:
        self._places: dict[int, int] = {}
        self._ids = np.zeros(64, np.intp)
        self._counts = np.zeros(64, np.float32)
        for token_id in token_ids:
            self.add(token_id)

    def add(self, token_id: int) -> None:
        """Count a token."""
        place = self._places.setdefault(token_id, len(self._places))
        if place == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._ids[place] = token_id
        self._counts[place] += 1

    @property
    def token_ids(self) -> npt.NDArray[np.intp]:
        """The tokens that came, each once [n]."""
        return self._ids[: len(self._places)]

    @property
    def counts(self) -> Floats:
        """How often each of `token_ids` came [n]."""
        return self._counts[: len(self._places)]


class Adjustments:
    """The adjustments of one answer. `on_token` must hear of each of its tokens.

    In vLLM's order: allowed tokens, bad words, tokens that would end the answer too soon, biases, penalties.
    """

    def __init__(
        self, params: SamplingParams, prompt_token_ids: Sequence[int], ending_token_ids: Iterable[int], vocab_size: int
    ) -> None:
        """Start an answer. `ending_token_ids`: those that end it, which `min_tokens` rules out at first."""
        self._params = params
        self._answer: list[int] = []
        self._ending = _known(ending_token_ids, vocab_size)
        self._allowed = None if params.allowed_token_ids is None else _known(params.allowed_token_ids, vocab_size)
        self._bad_words = [words for words in params.bad_words if words and max(words) < vocab_size]
        self._biased = _known(params.logit_bias, vocab_size)
        self._biases = np.array([params.logit_bias[int(token)] for token in self._biased], np.float32)
        has_repetition = params.repetition_penalty != 1.0
        self._repeated = TokenCounts(prompt_token_ids) if has_repetition else None
        self._said = TokenCounts() if params.presence_penalty or params.frequency_penalty else None

    @staticmethod
    def may_be_needed(params: SamplingParams) -> bool:
        """Whether anything here ever changes a row for such a request; greedy batches are faster without."""
        return bool(
            params.allowed_token_ids is not None
            or params.bad_words
            or params.min_tokens
            or params.logit_bias
            or params.presence_penalty
            or params.frequency_penalty
            or params.repetition_penalty != 1.0
        )

    def on_token(self, token_id: int) -> None:
        """Take note of the answer's next token."""
        self._answer.append(token_id)
        for counts in (self._repeated, self._said):
            if counts is not None:
                counts.add(token_id)

    def apply(self, logits: Floats) -> None:
        """Change a row [vocab_size] in place."""
        if self._allowed is not None:
            kept = logits[self._allowed]
            logits[:] = NEVER
            logits[self._allowed] = kept
        for words in self._bad_words:
            begin = len(words) - 1
            if begin == 0 or self._answer[-begin:] == words[:-1]:
                logits[words[-1]] = NEVER
        if len(self._answer) < self._params.min_tokens:
            logits[self._ending] = NEVER
        logits[self._biased] += self._biases
        self._penalize(logits)

    def _penalize(self, logits: Floats) -> None:
        if self._repeated is not None:
            tokens = self._repeated.token_ids
            penalty = np.float32(self._params.repetition_penalty)
            logits[tokens] = np.where(logits[tokens] > 0, logits[tokens] / penalty, logits[tokens] * penalty)
        if self._said is not None:
            frequency = np.float32(self._params.frequency_penalty) * self._said.counts
            logits[self._said.token_ids] -= frequency + np.float32(self._params.presence_penalty)


def _known(token_ids: Iterable[int], vocab_size: int) -> npt.NDArray[np.intp]:
    """Return the tokens that the model has logits for: its tokenizer may know more."""
    return np.array([token_id for token_id in token_ids if 0 <= token_id < vocab_size], np.intp)
