"""Grammars: what they let through, how they are compiled beside the loop, and what becomes of wrong ones."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import Future

import llguidance
import numpy as np
import pytest

from diptych.core.errors import EngineError, GrammarError
from diptych.core.request import SamplingParams
from diptych.models.grammar_guide import GrammarGuide
from diptych.models.vocabulary import Vocabulary
from diptych.worker.sampling.chooser import TokenChooser, choose_tokens
from diptych.worker.sampling.guide import FirstTokenGuide, GrammarCompiler, rule_out

EOS = 0


def tokens_of(text: str) -> list[int]:
    return [VOCABULARY.token_bytes.index(character.encode()) for character in text]


VOCABULARY = Vocabulary(
    [b"<eos>", b""] + [bytes([byte]) for byte in range(32, 127)] + [b'"name"', b"true", b'": '],
    frozenset({EOS}),
    is_byte_level=True,
    encode=tokens_of,
)
VOCAB_SIZE = VOCABULARY.size + 13
"""As of a model whose vocabulary is padded."""
PATIENCE_S = 20.0


def regex(pattern: str) -> str:
    return llguidance.LLMatcher.grammar_from_regex(pattern)


@pytest.fixture
def compiler() -> Iterator[GrammarCompiler]:
    compiler = GrammarCompiler(lambda: VOCABULARY, [EOS], VOCAB_SIZE, lambda: None)
    yield compiler
    compiler.close()


def allowed(guide: GrammarGuide) -> set[str]:
    logits = np.zeros(VOCAB_SIZE, np.float32)
    rule_out(logits, guide.mask())
    return {
        VOCABULARY.token_bytes[token].decode() if token < VOCABULARY.size else f"#{token}"
        for token in np.flatnonzero(np.isfinite(logits)).tolist()
    }


def test_a_guide_follows_its_grammar_to_the_end(compiler: GrammarCompiler) -> None:
    guide = compiler.compile(regex("ab+c")).result(PATIENCE_S)
    assert allowed(guide) == {"a"}
    guide.on_token(tokens_of("a")[0])
    assert allowed(guide) == {"b"}
    guide.on_token(tokens_of("b")[0])
    assert allowed(guide) == {"b", "c"}
    assert not guide.is_over
    guide.on_token(tokens_of("c")[0])
    assert guide.is_over
    assert allowed(guide) == {"<eos>"}


def test_copies_go_their_own_ways(compiler: GrammarCompiler) -> None:
    guide = compiler.compile(regex("[ab][cd]")).result(PATIENCE_S)
    copy = guide.copy()
    guide.on_token(tokens_of("a")[0])
    assert allowed(copy) == {"a", "b"}
    assert allowed(guide) == {"c", "d"}


def test_the_same_grammar_again_starts_anew(compiler: GrammarCompiler) -> None:
    grammar = regex("xy")
    first = compiler.compile(grammar).result(PATIENCE_S)
    first.on_token(tokens_of("x")[0])
    assert allowed(compiler.compile(grammar).result(PATIENCE_S)) == {"x"}


@pytest.mark.parametrize(
    "grammar",
    [
        regex("(unclosed"),
        "no grammar at all",
        llguidance.LLMatcher.grammar_from_json_schema(json.dumps({"type": "no such type"})),
        llguidance.LLMatcher.grammar_from_lark('start: missing "a"'),
    ],
)
def test_a_wrong_grammar_is_an_error_of_its_own(compiler: GrammarCompiler, grammar: str) -> None:
    with pytest.raises(GrammarError, match=r"the grammar cannot be used: .+"):
        compiler.compile(grammar).result(PATIENCE_S)
    assert allowed(compiler.compile(regex("z")).result(PATIENCE_S)) == {"z"}, "the next one is served"


def test_who_waits_is_woken() -> None:
    woken = threading.Event()
    compiler = GrammarCompiler(lambda: VOCABULARY, [EOS], VOCAB_SIZE, woken.set)
    future: Future[GrammarGuide] = compiler.compile(regex("a"))
    assert woken.wait(PATIENCE_S)
    assert future.done()
    compiler.close()


def test_a_mask_travels_with_a_grant(compiler: GrammarCompiler) -> None:
    guide = compiler.compile(regex("[pq]")).result(PATIENCE_S)
    first = FirstTokenGuide(guide.mask().tobytes())
    assert (first.mask() == guide.mask()).all()


def chooser(guide: GrammarGuide, **wanted: float) -> TokenChooser:
    params = SamplingParams(max_tokens=99, **wanted)  # type: ignore[arg-type]
    return TokenChooser(params, choice=0, prompt_token_ids=[2], eos_token_ids=[EOS], vocab_size=VOCAB_SIZE, guide=guide)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_match_whatever_the_model_would_rather_say(compiler: GrammarCompiler, temperature: float) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"enum": ["ann", "bob"]}, "ok": {"type": "boolean"}},
        "required": ["name", "ok"],
        "additionalProperties": False,
    }
    grammar = llguidance.LLMatcher.grammar_from_json_schema(
        json.dumps(schema), overrides={"whitespace_flexible": False}
    )
    for seed in range(5):
        one = chooser(compiler.compile(grammar).result(PATIENCE_S), temperature=temperature, seed=seed)
        logits = np.random.default_rng(seed).normal(0, 5, (1, VOCAB_SIZE)).astype(np.float32)
        said = b""
        while not one.is_over:
            (token,) = choose_tokens(logits, [(0, one)])
            assert not isinstance(token, EngineError)
            one.on_token(token.token_id)
            said += VOCABULARY.token_bytes[token.token_id]
        answer = json.loads(said.removesuffix(b"<eos>"))
        assert answer["name"] in {"ann", "bob"}
        assert isinstance(answer["ok"], bool)


def test_a_grammar_and_bans_that_leave_nothing_end_the_answer_with_an_error(compiler: GrammarCompiler) -> None:
    params = SamplingParams(max_tokens=9, bad_words=[tokens_of("a")])
    one = TokenChooser(
        params,
        choice=0,
        prompt_token_ids=[2],
        eos_token_ids=[EOS],
        vocab_size=VOCAB_SIZE,
        guide=compiler.compile(regex("a")).result(PATIENCE_S),
    )
    (result,) = choose_tokens(np.zeros((1, VOCAB_SIZE), np.float32), [(0, one)])
    assert isinstance(result, GrammarError)


@pytest.mark.parametrize("wanted", [{}, {"temperature": 0.0}, {"top_p": 0.7}, {"top_k": 4}, {"min_p": 0.1}])
def test_a_token_is_chosen_as_if_all_others_had_been_ruled_out_first(
    compiler: GrammarCompiler, wanted: dict[str, float]
) -> None:
    grammar, num_allowed = regex(r"([a-f]|[0-9]{2})*"), 0
    for seed in range(40):
        one = chooser(compiler.compile(grammar).result(PATIENCE_S), seed=seed, **wanted)
        logits = np.random.default_rng(seed).normal(0, 1.5, (1, VOCAB_SIZE)).astype(np.float32)
        assert one.guide is not None
        ruled_out = logits.copy()
        rule_out(ruled_out[0], one.guide.copy().mask())
        free = chooser(compiler.compile(regex("(?s:.*)")).result(PATIENCE_S), seed=seed, **wanted)
        free.guide = None
        num_allowed += choose_tokens(logits, [(0, free)]) == choose_tokens(ruled_out, [(0, free)])
        one.prepare()
        assert choose_tokens(logits, [(0, one)]) == choose_tokens(ruled_out, [(0, free)])
    assert 0 < num_allowed < 40, "both cases came: a first choice that may come, and one that may not"


def test_one_token_is_asked_about_as_in_the_mask(compiler: GrammarCompiler) -> None:
    grammar = regex('a{2}("name"|true){1,3}')
    asked, masked = compiler.compile(grammar).result(PATIENCE_S), compiler.compile(grammar).result(PATIENCE_S)
    for token in [*tokens_of("aa"), VOCABULARY.token_bytes.index(b'"name"'), VOCABULARY.token_bytes.index(b"true")]:
        masked.prepare()
        of_mask = [masked.allows(other) for other in range(VOCAB_SIZE)]
        assert [asked.allows(other) for other in range(VOCAB_SIZE)] == of_mask
        assert [FirstTokenGuide(masked.mask().tobytes()).allows(other) for other in range(VOCAB_SIZE)] == of_mask
        assert any(of_mask)
        asked.on_token(token)
        masked.on_token(token)
