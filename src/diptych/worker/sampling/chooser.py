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
        adjusted = logits
        if self._adjustments is not None:
            adjusted = logits.copy()
            self._adjustments.apply(adjusted)
        token_id = self._choose_within_grammar(adjusted, logits)
        num_top = self.params.num_logprobs
        return SampledToken(token_id, None if num_top is None else token_logprobs(logits, token_id, num_top))

    def prepare(self) -> None:
        """Do what the next token needs and its logits do not: the mask of a grammar, unless it is likely not needed."""
        if self.guide is not None and self._needs_mask:
            self.guide.prepare()

    @property
    def _needs_mask(self) -> bool:
        """Whether what a grammar rules out changes how likely the other tokens are.

        Otherwise the token is the one with the highest sum of logit and noise: if that one may come, it is also the
        highest of those that may.
        """
        params = self.params
        is_greedy = params.temperature == GREEDY_TEMPERATURE
        return not is_greedy and (params.top_k > 0 or params.top_p < 1 or params.min_p > 0)

    def _choose_within_grammar(self, logits: Floats, original: Floats) -> int:
        if self.guide is None:
            return self._pick(logits, original)
        if not self._needs_mask:
            token_id = self._pick(logits, original)
            if self.guide.allows(token_id):
                return token_id
        allowed = logits.copy()
        rule_out(allowed, self.guide.mask())
        return self._pick(allowed, original)

    def _pick(self, logits: Floats, original: Floats) -> int:
        """Take the likeliest token, or draw one; `original` is the row as the model left it."""
        best = int(logits.argmax())
        if not np.isfinite(logits[best]):
            if np.isfinite(original.max()):
                raise GrammarError("what the request rules out leaves no token to go on with")
            raise EngineError("the model returned logits that are no numbers")
        if self.params.temperature == GREEDY_TEMPERATURE:
            return best
        return draw_token(logits, best, self.params, Position(self.params.seed, self.choice, self._num_tokens))

    def follow(self, guide: Guide, answer: Iterable[int]) -> None:
        """Keep to a grammar from now on; `answer` is what there is of it already."""
        self.guide = guide
        for token_id in answer:
            guide.on_token(token_id)

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
