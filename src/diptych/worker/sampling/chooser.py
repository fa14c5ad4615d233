"""The choice of an answer's next token: logits are adjusted, a token is drawn, and its log-probability told."""

from collections.abc import Iterable, Sequence

import numpy as np

from diptych.core.errors import EngineError, GrammarError
from diptych.core.request import GREEDY_TEMPERATURE, SampledToken, SamplingParams
from diptych.engine.base import Logits
from diptych.worker.sampling.adjustments import Adjustments
from diptych.worker.sampling.draw import Position, draw_token
from diptych.worker.sampling.guide import Guide, rule_out
from diptych.worker.sampling.logprobs import token_logprobs
from diptych.worker.sampling.ranking import Floats


class TokenChooser:
    """What one answer needs to go on: how to sample, and what it has said so far.

    All of it follows from the request and the answer's tokens, so it need not be handed over.
    """

    def __init__(  # noqa: PLR0913  what an answer's tokens depend on
        self,
        params: SamplingParams,
        *,
        choice: int,
        prompt_token_ids: Sequence[int],
        eos_token_ids: Iterable[int],
        vocab_size: int,
        guide: Guide | None = None,
    ) -> None:
        self.params = params
        self.choice = choice
        self.guide = guide
        self._num_tokens = 0
        self._has_ended = False
        self._ending_token_ids = frozenset(params.stop_token_ids) | (
            frozenset() if params.ignore_eos else frozenset(eos_token_ids)
        )
        self._adjustments: Adjustments | None = None
        if Adjustments.may_be_needed(params):
            self._adjustments = Adjustments(params, prompt_token_ids, self._ending_token_ids, vocab_size)

    @property
    def is_plain(self) -> bool:
        """Whether the likeliest token is taken, as it is, and nothing told: the caller may do so itself."""
        is_greedy = self.params.temperature == GREEDY_TEMPERATURE
        return is_greedy and self._adjustments is None and self.guide is None and self.params.num_logprobs is None

    @property
    def is_over(self) -> bool:
        """Whether nothing may follow the last token: it ends answers, or completed the grammar."""
        return self._has_ended or (self.guide is not None and self.guide.is_over)

    def ends_with(self, token_id: int) -> bool:
        """Tell whether this token ends the answer."""
        return token_id in self._ending_token_ids

    def choose(self, logits: Floats) -> SampledToken:
        """Return the next token, from a row [vocab_size] that stays as it is.

        Raises: EngineError if the logits are no numbers; GrammarError if no token may come.
        """
        adjusted = self._adjust(logits)
        best = int(adjusted.argmax())
        if not np.isfinite(adjusted[best]):
            if np.isfinite(logits.max()):
                raise GrammarError("what the request rules out leaves no token to go on with")
            raise EngineError("the model returned logits that are no numbers")
        if self.params.temperature != GREEDY_TEMPERATURE:
            best = draw_token(adjusted, best, self.params, Position(self.params.seed, self.choice, self._num_tokens))
        num_top = self.params.num_logprobs
        return SampledToken(best, None if num_top is None else token_logprobs(logits, best, num_top))

    def _adjust(self, logits: Floats) -> Floats:
        if self._adjustments is None and self.guide is None:
            return logits
        adjusted = logits.copy()
        if self.guide is not None:
            rule_out(adjusted, self.guide.mask())
        if self._adjustments is not None:
            self._adjustments.apply(adjusted)
        return adjusted

    def on_token(self, token_id: int) -> None:
        """Take note that `token_id` is the answer's next token."""
        self._num_tokens += 1
        self._has_ended = self.ends_with(token_id)
        if self._adjustments is not None:
            self._adjustments.on_token(token_id)
        if self.guide is not None:
            self.guide.on_token(token_id)


def choose_tokens(logits: Logits, wanted: Sequence[tuple[int, TokenChooser]]) -> list[SampledToken | EngineError]:
    """Return the next token, or why there is none, for each (row of `logits`, chooser); several may share a row."""
    likeliest = logits.argmax(axis=1).tolist() if any(chooser.is_plain for _, chooser in wanted) else []
    return [_choose(logits[row], chooser, likeliest[row] if chooser.is_plain else None) for row, chooser in wanted]


def _choose(logits: Floats, chooser: TokenChooser, likeliest: int | None) -> SampledToken | EngineError:
    if likeliest is not None and np.isfinite(logits[likeliest]):
        return SampledToken(likeliest)
    try:
        return chooser.choose(logits)
    except EngineError as error:
        return error
