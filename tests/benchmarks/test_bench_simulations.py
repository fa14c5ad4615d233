"""The simulated benchmarks on small instances: what they are to show, they show."""

import pytest
from rich.progress import Progress

import admission_swing
import eviction
import routing_replay
from diptych.sim.prompts import offered_by_trace
from harness.conversation_trace import conversation_rows
from harness.program import ProgressBar


@pytest.mark.slow
def test_early_rejection_swings_and_prediction_calms() -> None:
    options = admission_swing.SwingOptions(workers=2, rate_per_s=8.0, duration_s=240.0, settle_s=60.0)
    swings = {name: admission_swing.simulate(options, name) for name in ("early", "predictive")}
    assert swings["early"].deviation > swings["predictive"].deviation
    assert min(swing.num_refused for swing in swings.values()) > 0


@pytest.mark.slow
def test_every_workload_is_shown_with_every_seed() -> None:
    options = admission_swing.SwingOptions(
        workers=1, rate_per_s=2.0, duration_s=60.0, settle_s=20.0, num_seeds=2, processes=1
    )
    outcome = admission_swing.measure(options, ProgressBar(Progress(disable=True), "swing"))
    assert len(outcome.findings) == 2 * len(admission_swing.WORKLOADS)
    assert {finding.measured.num_samples for finding in outcome.findings} == {2}
    for workload in admission_swing.WORKLOADS:
        assert {(run["seed"], run["admission"]) for run in outcome.samples[workload]} >= {
            (seed, name) for seed in (0, 1) for name in ("early", "predictive")
        }


@pytest.mark.parametrize("percent", [2, 5, 20, 60, 100])
def test_reuse_aware_is_no_worse_than_lru(percent: float) -> None:
    prompts = eviction.prompts_of(list(offered_by_trace(conversation_rows(1000))))
    footprint = len({block_hash for hashes in prompts for block_hash in hashes})
    num_blocks = round(footprint * percent / 100)
    aware = eviction.count_hits(prompts, "reuse-aware", num_blocks)
    assert aware >= eviction.count_hits(prompts, "lru", num_blocks) > 0
    if percent == 100:
        assert aware == sum(map(len, prompts)) - footprint


def test_the_infinite_cache_bounds_every_hit_rate() -> None:
    options = routing_replay.ReplayOptions(rows=60)
    offered = list(offered_by_trace(conversation_rows(options.rows), options.coupled_speed))
    infinite = routing_replay.infinite_hit_rate(offered)
    summary = routing_replay.replay(options, "coupled", "kv-centric")
    assert 0 < summary.hit_rate <= infinite < 1
    assert summary == routing_replay.replay(options, "coupled", "kv-centric")
