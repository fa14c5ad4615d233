"""Which phase is said to hold requests up."""

from typing import Any

import pytest
from tests.router.conftest import worker_status

from diptych.core.events import Lifecycle, RequestRecord
from diptych.core.ids import WorkerId
from diptych.core.messages import PeerAddress, Role, WorkerState
from diptych.core.service import WorkerInfo
from diptych.core.slo import Slo
from diptych.policy.bottleneck import judge

SLO = Slo(1.0, 0.05)


def worker(role: Role, state: WorkerState = WorkerState.READY, **counts: float) -> WorkerInfo:
    status = worker_status(state, **counts)
    address = PeerAddress(WorkerId(f"{role}-0"), "", 1)
    return WorkerInfo(role=role, address=address, status=status, heartbeat_age_s=0.1, num_assigned=0)


def pools(queued_prefill_tokens: int = 0, decode_step_s: float = 0.01) -> list[WorkerInfo]:
    """Return one worker of each role; the prefill worker reads 1,000 tokens a second."""
    return [
        worker(Role.PREFILL, queued_prefill_tokens=queued_prefill_tokens, decode_step_s=0.0),
        worker(Role.DECODE, num_running=4, num_answers=4, decode_step_s=decode_step_s),
    ]


def ended(reserved: float = 0.0, granted: float = 0.0, first: float = 0.1, finished: float = 0.2) -> RequestRecord:
    """Return a request of 11 tokens that came at 0."""
    moments = {"arrived": 0.0, "routed": 0.0, "reserved": reserved, "granted": granted}
    timeline = {Lifecycle(name): at for name, at in (moments | {"first_token": first, "finished": finished}).items()}
    facts: dict[str, Any] = {"num_prompt_tokens": 9, "num_cached_tokens": 0, "num_preemptions": 0}
    return RequestRecord(
        request_id="r",
        outcome="stop",
        decode_worker="decode-0",
        prefill_worker="prefill-0",
        num_output_tokens=11,
        timeline=timeline,
        **facts,
    )


def test_idle_is_idle() -> None:
    verdict = judge([worker(Role.PREFILL), worker(Role.DECODE)], [], 0, SLO)
    assert (verdict.bottleneck, verdict.sentence) == ("none", "Idle: nothing to read and nothing to write.")


def test_nobody_is_up() -> None:
    assert judge([worker(Role.DECODE, WorkerState.DEAD)], [], 3, SLO).sentence == "No worker is up."


def test_both_phases_with_time_to_spare() -> None:
    assert judge(pools(100), [ended()], 4, SLO).bottleneck == "none"


def test_a_queue_of_prompts_is_prefill() -> None:
    verdict = judge(pools(3_000), [], 4, SLO)
    assert verdict.bottleneck == "prefill"
    assert verdict.sentence == (
        "Prefill is the bottleneck: 3,000 prompt tokens wait, 3.0 s of reading, and first tokens are due in 1.0 s."
    )
    assert verdict.prefill_use == pytest.approx(3.0)


def test_slow_steps_are_decode() -> None:
    verdict = judge(pools(decode_step_s=0.08), [], 4, SLO)
    assert verdict.bottleneck == "decode"
    assert verdict.sentence == "Decode is the bottleneck: a step takes 80 ms, and tokens are due every 50 ms."


def test_what_nobody_waits_for_is_no_bottleneck() -> None:
    """The slow step was of answers that are over."""
    idle = [worker(Role.DECODE, decode_step_s=0.08)]
    assert judge(idle, [ended()], 0, SLO).bottleneck == "none"


def test_waiting_for_a_place_is_decode_however_late_the_first_token_is() -> None:
    verdict = judge(pools(), [ended(reserved=2.0, granted=2.0, first=2.1, finished=2.2)], 4, SLO)
    assert verdict.bottleneck == "decode"
    assert "requests wait 2.0 s for a place among the answers" in verdict.sentence


def test_what_was_read_late_is_prefill() -> None:
    verdict = judge(pools(), [ended(first=1.6, finished=1.8)], 4, SLO)
    assert verdict.bottleneck == "prefill"
    assert "prompts wait and are read for 1.6 s, and first tokens are due in 1.0 s" in verdict.sentence


def test_answers_that_were_slow_of_late_are_decode() -> None:
    verdict = judge(pools(), [ended(first=0.1, finished=1.1)], 4, SLO)
    assert verdict.bottleneck == "decode"
    assert "tokens come every 100 ms and are due every 50 ms" in verdict.sentence


def test_two_that_are_alike_are_both_named() -> None:
    verdict = judge(pools(2_000, decode_step_s=0.1), [], 4, SLO)
    assert verdict.bottleneck == "both"
    assert "2,000 prompt tokens" in verdict.sentence and "a step takes 100 ms" in verdict.sentence


def test_within_the_slo_it_says_so() -> None:
    assert judge(pools(700), [], 4, SLO).sentence.startswith("Prefill is nearer to its limit: ")
    assert "within the SLO so far" in judge(pools(700, decode_step_s=0.035), [], 4, SLO).sentence
