"""Several answers to a prompt, grammars and log-probabilities, seen from the workers: on every path the same."""

from concurrent.futures import Future
from typing import Any

import pytest
from llguidance import LLMatcher
from tests.worker.role_cluster import FIRST_CHARACTER, RoleCluster, start_roles, token_of

from diptych.core.messages import Aborted, Failed, FailureKind
from diptych.models.grammar_guide import GrammarGuide

PROMPT = [(7 * number) % 900 for number in range(80)]
PATHS: list[dict[str, Any]] = [{}, {"num_prefill": 0}, {"num_prefill": 0, "num_decode": 0, "num_mixed": 1}]
REGEX = LLMatcher.grammar_from_regex("[a-f]{2}( [0-9]+)+x")


def home_of(cluster: RoleCluster) -> dict[str, Any]:
    """Return where a request goes in this cluster."""
    names = list(cluster.workers)
    to = next(name for name in names if not name.startswith("prefill"))
    return {"to": to, "prefill": next((name for name in names if name.startswith("prefill")), None)}


def text_of(token_ids: list[int]) -> str:
    return "".join(chr(token_id - FIRST_CHARACTER + ord(" ")) for token_id in token_ids)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_choices_share_the_prompt_and_differ_behind_it(path: dict[str, Any]) -> None:
    cluster = start_roles(**path)
    heard = cluster.submit(PROMPT, 40, num_choices=4, temperature=1.0, **home_of(cluster))
    decode = cluster.workers[home_of(cluster)["to"]].decode
    while any(len(choice.tokens) < 3 for choice in heard.choices):
        cluster.deliver_all()
        for worker_id in cluster.workers:
            cluster.step(worker_id)

    placed = decode.roster.placed
    assert [sequence.choice for sequence in placed] == [0, 1, 2, 3]
    shared = {tuple(sequence.block_table[:2]) for sequence in placed}
    assert len(shared) == 1, "full blocks are shared"
    assert len({sequence.block_table[2] for sequence in placed}) == 4, "the last one is each choice's own"
    cluster.run()
    cluster.check_answers()
    cluster.check_idle()
    assert len({tuple(choice.answer) for choice in heard.choices}) == 4
    assert len(heard.started) >= 1
    # 80 prompt tokens once, not four times; then a token a step for all.
    assert cluster.workers[home_of(cluster)["to"]].num_steps < 40 + 80


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_choices_that_find_no_block_wait_for_one(path: dict[str, Any]) -> None:
    cluster = start_roles(**path, num_blocks=5)
    heard = cluster.submit(PROMPT, 30, num_choices=3, temperature=1.0, **home_of(cluster))
    cluster.run()
    cluster.check_answers()
    cluster.check_idle()
    assert sum(choice.finished.num_preemptions for choice in heard.choices) > 0


def test_a_choice_can_be_given_up_alone() -> None:
    cluster = start_roles()
    heard = cluster.submit(PROMPT, 40, num_choices=3, temperature=1.0)
    while len(heard.choices[1].tokens) < 2:
        cluster.deliver_all()
        for worker_id in cluster.workers:
            cluster.step(worker_id)
    cluster.abort(heard, choice=1)
    cluster.run()

    assert isinstance(heard.choices[1].end, Aborted)
    cluster.check_answers()
    cluster.check_idle()
    assert len(heard.choices[0].answer) == len(heard.choices[2].answer) == 40


def test_all_choices_end_with_their_request() -> None:
    cluster = start_roles()
    heard = cluster.submit(PROMPT, 40, num_choices=3, temperature=1.0)
    cluster.deliver_all()
    cluster.abort(heard)  # the prompt is still being read
    cluster.run()
    assert [type(end) for end in heard.ends] == [Aborted] * 3
    cluster.check_idle()


def test_choices_count_as_places() -> None:
    cluster = start_roles(max_num_seqs=4)
    first = cluster.submit(PROMPT, 20, num_choices=3, temperature=1.0)
    second = cluster.submit(PROMPT, 20, num_choices=2, temperature=1.0, seed=1)
    third = cluster.submit(PROMPT, 20, num_choices=5)
    cluster.deliver_all()
    assert cluster.workers["decode-0"].decode.load().num_waiting == 1
    cluster.run()
    (end,) = {id(end): end for end in third.ends}.values()
    assert isinstance(end, Failed)
    assert end.kind is FailureKind.INVALID
    assert "--max-num-seqs" in end.message
    del cluster.heard[third.request.request_id]
    cluster.check_answers()
    assert len(first.ends) + len(second.ends) == 5


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("num_choices", [1, 3])
def test_a_grammar_holds_on_every_path(path: dict[str, Any], num_choices: int) -> None:
    cluster = start_roles(**path, eos_token_ids=frozenset({299}))
    heard = cluster.submit(PROMPT, 60, num_choices=num_choices, temperature=1.0, grammar=REGEX, **home_of(cluster))
    cluster.run()
    cluster.check_answers()
    cluster.check_idle()
    matcher = cluster.guides
    for choice in heard.choices:
        guide = matcher.compile(REGEX).result()
        for token_id in choice.answer:
            assert int(guide.mask()[token_id // 32]) >> (token_id % 32) & 1, text_of(choice.answer)
            guide.on_token(token_id)


def test_a_grammar_survives_preemption() -> None:
    cluster = start_roles(num_blocks=9, eos_token_ids=frozenset({299}))
    endless = LLMatcher.grammar_from_regex("[a-z]{100}")
    heards = [
        cluster.submit(PROMPT[:40], 90, temperature=1.0, seed=seed, grammar=endless, bad_words=[[token_of("q")]])
        for seed in range(4)
    ]
    cluster.run()
    assert sum(heard.finished.num_preemptions for heard in heards) > 0
    cluster.check_answers()
    for heard in heards:
        assert set(text_of(heard.answer)) <= set("abcdefghijklmnoprstuvwxyz")


def test_a_wrong_grammar_is_the_clients_to_mend() -> None:
    cluster = start_roles()
    heard = cluster.submit(PROMPT, grammar="no grammar")
    cluster.run()
    (end,) = heard.ends
    assert isinstance(end, Failed)
    assert end.kind is FailureKind.INVALID
    assert "the grammar cannot be used" in end.message
    cluster.check_idle()


def test_a_dead_end_fails_its_own_request_alone() -> None:
    cluster = start_roles()
    stuck = cluster.submit(PROMPT, grammar=LLMatcher.grammar_from_regex("ab"), bad_words=[[token_of("b")]])
    fine = cluster.submit(PROMPT[:50], 10)
    cluster.run()
    (end,) = stuck.ends
    assert isinstance(end, Failed)
    assert end.kind is FailureKind.INVALID
    assert len(fine.answer) == 10
    cluster.check_idle()


class SlowGuides:
    """Compiles when the test says so."""

    def __init__(self, cluster: RoleCluster) -> None:
        self._instant = cluster.guides
        self.futures: list[tuple[str, Future[GrammarGuide]]] = []

    def compile(self, grammar: str, cache_salt: str = "") -> Future[GrammarGuide]:
        self.futures.append((grammar, Future()))
        return self.futures[-1][1]

    def finish(self) -> None:
        for grammar, future in self.futures:
            if future.set_running_or_notify_cancel():
                future.set_result(self._instant.compile(grammar).result())


def slow_cluster() -> tuple[RoleCluster, SlowGuides]:
    cluster = start_roles(eos_token_ids=frozenset({299}))
    guides = SlowGuides(cluster)
    cluster.workers["decode-0"].decode._guides = guides
    return cluster, guides


def test_nobody_waits_for_the_grammar_of_another() -> None:
    cluster, guides = slow_cluster()
    guided = cluster.submit(PROMPT, 50, grammar=REGEX)
    plain = cluster.submit(PROMPT, 5)
    cluster.run()
    assert len(plain.answer) == 5
    assert not guided.ends
    assert cluster.workers["decode-0"].decode.load().num_waiting == 1
    guides.finish()
    cluster._after("decode-0")
    cluster.run()
    cluster.check_answers()
    cluster.check_idle()


@pytest.mark.parametrize("ending", ["abort", "deadline"])
def test_who_waits_for_a_grammar_can_be_ended(ending: str) -> None:
    cluster, guides = slow_cluster()
    guided = cluster.submit(PROMPT, grammar=REGEX, timeout_s=1.0)
    cluster.deliver_all()
    if ending == "abort":
        cluster.abort(guided)
        cluster.deliver_all()
    else:
        cluster.clock.sleep(2.0)
        cluster.begin("decode-0")
    assert len(guided.ends) == 1
    guides.finish()
    cluster._after("decode-0")
    cluster.run()
    cluster.check_idle()


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_logprobs_are_told_alike_on_every_path(path: dict[str, Any]) -> None:
    cluster = start_roles(**path, chunk_tokens=32)
    home = home_of(cluster)
    cluster.submit(PROMPT, 1, **home)  # leaves blocks that must not be used
    cluster.run()
    heard = cluster.submit(PROMPT, 5, num_choices=2, num_logprobs=2, num_prompt_logprobs=1, **home)
    cluster.run()
    cluster.check_answers()

    told = heard.started[0].prompt_logprobs
    assert told is not None
    assert len(told) == len(PROMPT) - 1
    # The modeled engine's logits: 8 for the likeliest token, 7 for the next, -30 for nearly all.
    assert all(-0.5 < entry.top[0][1] < -0.4 for entry in told)
    assert {entry.logprob < -30 for entry in told} == {True}
    assert heard.started[0].num_cached_tokens == 0
    for choice in heard.choices:
        for index, token_id in choice.tokens.items():
            logprobs = choice.logprobs[index]
            assert logprobs is not None
            assert logprobs.rank == 1
            assert logprobs.top[0][0] == token_id
            assert logprobs.logprob == logprobs.top[0][1]


def test_prompt_logprobs_survive_the_death_of_who_was_to_tell_them() -> None:
    cluster = start_roles(chunk_tokens=256)
    heard = cluster.submit(PROMPT, 5, num_prompt_logprobs=0)
    cluster.deliver_all()
    cluster.step("prefill-0")
    cluster.deliver("prefill-0", "decode-0")  # that the blocks are filled
    cluster.kill("prefill-0")  # before the router has heard of the first token
    cluster.run()
    (started,) = heard.started
    assert started.prompt_logprobs is not None
    assert len(started.prompt_logprobs) == len(PROMPT) - 1
    cluster.check_answers()
