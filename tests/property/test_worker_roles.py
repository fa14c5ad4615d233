"""Random lives of several workers: letters late, overtaken and lost, copies, aborts, deadlines and deaths at any time;
prefill workers on the same machine, or on another one, from where KV comes late, is fetched, or never arrives.

Whatever happens, each request ends once, no token of it is ever wrong, nobody gets blocks that another may still write,
and at the end every block is free and the header tells the truth.
"""

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from llguidance import LLMatcher
from tests.worker.role_cluster import Heard, RoleCluster, start_roles

from diptych.core.events import Lifecycle
from diptych.core.ids import BlockId

PICKS = st.integers(0, 999)
STORIES = [[(7 * number + story) % 900 for number in range(160)] for story in range(3)]
PROMPTS = st.builds(
    lambda story, num_shared, rest: STORIES[story][:num_shared] + rest,
    st.integers(0, 2),
    st.sampled_from([20, 33, 30, 0, 65, 64, 31, 96, 160]),
    st.lists(st.integers(0, 3), max_size=3),
).filter(bool)
SHAPES = [(1, 2, 0), (1, 1, 0), (2, 1, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1), (0, 3, 0)]
"""Prefill, decode and mixed workers."""
SETTINGS = st.fixed_dictionaries(
    {
        "num_blocks": st.sampled_from([8, 7, 10, 20]),
        "max_num_seqs": st.sampled_from([4, 6, 3, 1]),
        "chunk_tokens": st.sampled_from([16, 40, 256]),
        "is_exact": st.booleans(),
        "is_adaptive": st.booleans(),
        "has_tier": st.booleans(),
        "is_far": st.booleans(),
        "is_inline": st.booleans(),
        "num_far_blocks": st.sampled_from([20, 8, 7]),
        "slo_tpot_s": st.sampled_from([0.1, 0.03, 1.0]),
        "queue_timeout_s": st.sampled_from([None, None, 3.0]),
        "eos_token_ids": st.sampled_from([frozenset(), frozenset(range(256, 276))]),
    }
)
REQUESTS = st.fixed_dictionaries(
    {
        "prompt": PROMPTS,
        "max_tokens": st.sampled_from([130, 100, 60, 5, 1]),
        "timeout_s": st.sampled_from([1e4] * 9 + [1.0]),
        "temperature": st.sampled_from([0.0, 0.0, 1.0]),
        "ignore_eos": st.booleans(),
        "num_choices": st.sampled_from([1, 1, 1, 2, 3]),
        "cache_salt": st.sampled_from(["", "", "", "other"]),
        "extra": st.sampled_from(
            [
                {},
                {},
                {"presence_penalty": 1.0, "frequency_penalty": 2.5, "repetition_penalty": 1.3},
                {"min_tokens": 4, "logit_bias": {300: 20.0, 301: 20.0, 270: 21.0}, "stop_token_ids": [301]},
                {"grammar": LLMatcher.grammar_from_regex("[a-c]( [d-k]{2}){3,20}")},
                {"num_logprobs": 2},
            ]
        ),
    }
)
MAX_REQUESTS = 12
"""Few enough that no queue is ever full."""


class RoleLife(RuleBasedStateMachine):
    """`picks` choose among whatever there is at the moment."""

    @initialize(shape=st.sampled_from(SHAPES), changes=SETTINGS)
    def start(self, shape: tuple[int, int, int], changes: dict[str, Any]) -> None:
        num_prefill, num_decode, num_mixed = shape
        changes["is_far"] &= num_prefill > 0
        changes["is_adaptive"] &= not changes["is_far"]  # answers of the far machine's workers would be another story
        self.cluster: RoleCluster = start_roles(
            num_prefill=num_prefill, num_decode=num_decode, num_mixed=num_mixed, **changes
        )
        for story in STORIES:
            self.cluster.shelve(story)
        self.readers = [f"prefill-{number}" for number in range(num_prefill)]
        self.writers = self.cluster.settings.owners
        self.homes: dict[str, str] = {}

    @precondition(lambda self: len(self.cluster.heard) < MAX_REQUESTS)
    @rule(requests=st.lists(REQUESTS, min_size=1, max_size=4), pick=PICKS)
    def submit(self, requests: list[dict[str, Any]], pick: int) -> None:
        writers = [name for name in self.writers if name in self.cluster.workers]
        readers = [name for name in self.readers if name in self.cluster.workers]
        for number, request in enumerate(requests, start=pick):
            to = writers[number % len(writers)]
            choices = min(request["num_choices"], self.cluster.settings.max_num_seqs)
            sampling = request | request["extra"] | {"num_choices": choices}
            del sampling["extra"]
            is_local = not to.startswith("decode") or not readers or number % 5 == 0
            reader = None if is_local else readers[number % len(readers)]
            lenders = [name for name in writers if name != to]
            lender = lenders[pick % len(lenders)] if lenders and number % 4 else None
            heard = self.cluster.submit(**sampling, to=to, prefill=reader, seed=number, copy_from=lender)
            self.homes[heard.request.request_id] = to

    @precondition(lambda self: self.cluster.heard)
    @rule(pick=PICKS)
    def abort(self, pick: int) -> None:
        heards: list[Heard] = list(self.cluster.heard.values())
        heard = heards[pick % len(heards)]
        if pick % 3 == 0:
            self.cluster.abort(heard, self.homes[heard.request.request_id])
        elif pick % 3 == 1 and heard.choices[choice := pick % len(heard.choices)].tokens:
            self.cluster.abort(heard, self.homes[heard.request.request_id], choice)

    @precondition(lambda self: self.cluster.letters.waiting())
    @rule(picks=st.lists(PICKS, min_size=1, max_size=4))
    def deliver(self, picks: list[int]) -> None:
        for pick in picks:
            if routes := self.cluster.letters.waiting():
                self.cluster.deliver(*routes[pick % len(routes)])

    @rule(pick=PICKS)
    def lose(self, pick: int) -> None:
        """Lose a letter between workers; what the launcher and the router say comes twice, or is asked for again."""
        routes = [route for route in self.cluster.letters.waiting() if set(route) <= set(self.cluster.workers)]
        if routes:
            self.cluster.letters.take(routes[pick % len(routes)])

    @rule(pick=PICKS)
    def begin(self, pick: int) -> None:
        idle = [name for name, worker in self.cluster.workers.items() if worker.parts is None]
        if idle:
            self.cluster.begin(idle[pick % len(idle)])

    @rule(pick=PICKS)
    def write(self, pick: int) -> None:
        busy = [worker for worker in self.cluster.workers.values() if worker.parts is not None]
        if busy:
            busy[pick % len(busy)].write()

    @rule(pick=PICKS)
    def end(self, pick: int) -> None:
        busy = [name for name, worker in self.cluster.workers.items() if worker.parts is not None]
        if busy:
            self.cluster.end(busy[pick % len(busy)])

    @rule(pick=PICKS, most_bytes=st.sampled_from([100, 1, 256, 700, 10**6]))
    def copy(self, pick: int, most_bytes: int) -> None:
        """Copy a slice, the end of which is anywhere in a block."""
        names = list(self.cluster.workers)
        self.cluster.copy(names[pick % len(names)], most_bytes)

    @rule(picks=st.lists(PICKS, min_size=5, max_size=60))
    def go_on(self, picks: list[int]) -> None:
        """Many steps, so that answers get long."""
        for pick in picks:
            self.end(pick)
            self.begin(pick // 10)
            if pick % 2:
                self.copy(pick // 7, 300)
            if pick % 3:
                self.deliver([pick])
            if pick % 5 < 3:
                self.cluster.transfer(pick)

    @precondition(lambda self: self.cluster.settings.has_tier)
    @rule(picks=st.lists(PICKS, min_size=1, max_size=6))
    def load(self, picks: list[int]) -> None:
        """Let the tier below someone's blocks load; at times it is full, or has lost what it said it had."""
        for pick in picks:
            names = list(self.cluster.workers)
            self.cluster.load(names[pick % len(names)])
            self.cluster.shelf.is_full = pick % 7 == 6
            if pick % 5 == 4:
                self.cluster.shelf.lose(pick)

    @precondition(lambda self: self.cluster.settings.is_far)
    @rule(picks=st.lists(PICKS, min_size=1, max_size=6))
    def transfer(self, picks: list[int]) -> None:
        """Let blocks begin to move between machines, or arrive; at times they do not."""
        for pick in picks:
            self.cluster.transfer(pick, does_fail=pick % 9 == 8)

    @rule(duration_s=st.sampled_from([0.01, 0.5, 2.0]))
    def wait(self, duration_s: float) -> None:
        self.cluster.clock.sleep(duration_s)

    @rule(pick=PICKS, num_letters_sent=st.integers(0, 3), has_written=st.booleans())
    def kill(self, pick: int, num_letters_sent: int, has_written: bool) -> None:
        """Kill any worker; another, or its own successor, goes on with its requests."""
        alive = list(self.cluster.workers)
        victim = alive[pick % len(alive)]
        self.cluster.kill(victim, num_letters_sent, has_written=has_written)
        heirs = [name for name in self.writers if name in self.cluster.workers]
        if not heirs or pick % 3:
            self.cluster.revive(victim)
            heirs = [name for name in self.writers if name == victim and (pick % 2 or not heirs)] or heirs
        for number, heard in enumerate(self.cluster.heard.values(), start=pick):
            if self.homes[heard.request.request_id] == victim:
                self.cluster.bury(heard)
                if any(choice.end is None for choice in heard.choices):
                    self.migrate(heard, victim, heirs[number % len(heirs)], number)

    def migrate(self, heard: Heard, dead: str, to: str, pick: int) -> None:
        readers = [name for name in self.readers if name in self.cluster.workers and to.startswith("decode")]
        self.cluster.migrate(heard, dead, to, readers[pick % len(readers)] if readers and pick % 4 else None)
        self.homes[heard.request.request_id] = to

    @invariant()
    def blocks_and_records_agree(self) -> None:
        for name in getattr(self, "writers", []):
            if name not in self.cluster.workers:
                continue
            decode = self.cluster.workers[name].decode
            decode.blocks.cache.check_invariants()
            for sequence in decode.roster.placed:
                blocks: list[BlockId] = sequence.block_table
                assert len(set(blocks)) == len(blocks)
                records = self.cluster.header.committed(blocks)
                num_recorded = sum(record.num_tokens for record in records if record is not None)
                assert num_recorded >= sequence.num_computed_tokens, "a successor would not know what is computed"
                if Lifecycle.GRANTED not in sequence.timeline:  # else another has read, and perhaps told nobody
                    assert num_recorded == sequence.num_computed_tokens, "a successor would believe too much"

    @invariant()
    def nothing_moves_into_blocks_of_others(self) -> None:
        for link in self.cluster.wires.links() if hasattr(self, "cluster") else []:
            moving = link.moving
            if moving is not None and not moving.is_fetch:
                epochs = moving.receiver.memory.header.epochs_of(moving.targets)
                assert set(epochs.tolist()) == {moving.epoch}, "blocks were given away while something moved into them"

    def teardown(self) -> None:
        if not hasattr(self, "cluster"):
            return
        for _ in range(3):  # what was lost is asked for
            self.cluster.run()
            self.cluster.clock.sleep(self.cluster.settings.grant_timeout_s)
        self.cluster.run()
        self.cluster.check_answers()
        self.cluster.check_idle()


class LongRoleLife(RoleLife):
    """The same, to be lived more often and longer."""


BRIEF = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=25, stateful_step_count=30)
# Of the time, 300 s are for making a failure simple.
TestRoleLife = pytest.mark.timeout(600)(RoleLife.TestCase)
TestRoleLife.settings = BRIEF
TestLongRoleLife = pytest.mark.slow(pytest.mark.timeout(900)(LongRoleLife.TestCase))
TestLongRoleLife.settings = settings(BRIEF, max_examples=250, stateful_step_count=50)
