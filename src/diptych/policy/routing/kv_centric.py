"""Mooncake's scheduling: by predicted TTFT, with prefixes that may be fetched from other workers.

Each request goes where its first token is predicted soonest. Where another worker's prefix is much longer than the
owner's, the missing blocks are copied before the rest is computed, if that is sooner. So a prefix that many ask for is
soon in several caches: hot prefixes replicate themselves, without anyone having counted.

See: Mooncake (Qin et al., FAST 2025; arXiv 2407.00079), algorithm 1. There a prefill instance has prefix cache and
queue, and the decode instance is chosen for itself, by predicted TBT. Here the prefix is the owner's and the queue the
reader's (they are one where a worker reads for itself), so one choice is for both: among the owners whose predicted
TPOT is within the SLO, the soonest first token. Where the threshold lets a prefix be fetched, theirs always is; ours
only if that is predicted to be sooner.
"""

from collections.abc import Mapping, Sequence

from diptych.core.ids import NodeId, WorkerId
from diptych.policy.pairing import Pair, WorkerLoad
from diptych.policy.routing.candidates import (
    able_owners,
    is_full,
    shortest_queues,
    shortlist,
)
from diptych.policy.routing.question import Chance, Question, Route, Rules
from diptych.policy.routing.replication import best_holders, routes_with


def kv_centric(
    question: Question, loads: Sequence[WorkerLoad], rules: Rules, turn: int, chance: Chance
) -> Route | None:
    """Take the owner with the soonest first token, after a copy of a longer prefix where that helps."""
    return _soonest(question, loads, rules, best_holders(question, loads))


def prefix_local(
    question: Question, loads: Sequence[WorkerLoad], rules: Rules, turn: int, chance: Chance
) -> Route | None:
    """Take the owner with the soonest first token, by the prefix that it has itself."""
    return _soonest(question, loads, rules, {})


def _soonest(
    question: Question, loads: Sequence[WorkerLoad], rules: Rules, holders: Mapping[NodeId, WorkerId]
) -> Route | None:
    queues = shortest_queues(loads, question, rules)
    candidates = [
        (_order(route.pair, is_full(owner, question, rules), rules), route)
        for owner in shortlist(able_owners(question, loads, rules), question)
        for route in routes_with(owner, queues, holders, question, rules)
    ]
    return min(candidates, key=lambda one: one[0])[1] if candidates else None


def _order(pair: Pair, has_no_room: bool, rules: Rules) -> tuple[float, bool, float, float, WorkerId]:
    lateness = max(pair.step_s / (rules.slo.tpot_s * pair.step_share), 1.0)
    return lateness, has_no_room, pair.ttft_s, pair.step_s, pair.owner
