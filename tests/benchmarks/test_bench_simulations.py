"""The simulated benchmarks on small instances: what they are to show, they show."""

from pathlib import Path

import numpy as np
import pytest
from rich.progress import Progress

import admission_swing
import eviction
import routing_replay
import simulator_sampling
import simulator_speed
import simulator_truth
from diptych.hardware.profile import read_profile
from diptych.sim.prompts import offered_by_trace
from harness.conversation_trace import conversation_rows
from harness.program import ProgressBar
from harness.truth_report import pooled


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


RUNS = Path(__file__).parents[2] / "benchmarks" / "results" / "zen4-avx512" / "truth"
OVERHEADS = simulator_truth.Overheads(accept_s=0.02, step_s=0.001, decode_factor=1.0, prefill_factor=1.15)
"""As chosen on chats (`simulator_truth.md` there); the mixed workload has had no part in it."""


@pytest.mark.parametrize("setup", ["strict", "colocated-64"])
def test_the_simulator_says_what_real_runs_have_shown_with_steps_as_slow_as_they_were(setup: str) -> None:
    options = simulator_truth.TruthOptions(results=RUNS, workloads="mixed", setups=setup)
    profile = read_profile(RUNS / "profile.json")
    runs = list(simulator_truth.real_runs(options))
    each = [one for run in runs for one in simulator_truth.compare(run, profile, OVERHEADS)]
    comparisons = pooled(each)
    assert len(comparisons) == 12
    points = [abs(one.points_as_slow) for one in comparisons]
    assert np.mean(points) <= simulator_truth.MOST_MEAN
    assert max(points) <= simulator_truth.MOST_WORST
    assert {one.num_requests for one in each} == {run.summary.num_offered for run in runs}, "the same requests"


def test_speed_is_told_of_every_size_and_policy() -> None:
    options = simulator_speed.SpeedOptions(requests=40, workers=(4.0, 8.0), rounds=2)
    outcome = simulator_speed.measure(options, ProgressBar(Progress(disable=True), "speed"))
    runs = outcome.samples["runs"]
    assert [run["num_workers"] for run in runs] == [4, 4, 8, *[4] * 7]
    assert all(run["cpu_s"] > 0 and run["mean_ttft_s"] > 0 for run in runs)


def test_a_slice_gets_its_share_and_whole_conversations() -> None:
    whole = list(simulator_sampling.traffic(40.0, 200.0))
    part = list(simulator_sampling.traffic(40.0, 200.0, one_in=4.0))
    assert 0.15 < len(part) / len(whole) < 0.35
    assert set(part) <= set(whole)
    conversations = [{request.block_numbers[-1] for request in some} for some in (part, set(whole) - set(part))]
    uses = len(conversations[0] & conversations[1])
    assert uses <= 0.02 * len(whole), "hardly any of one conversation are on both sides"
    day = list(simulator_sampling.traffic(40.0, 8_000.0, one_in=4.0, day_s=8_000.0))
    night, noon = (sum(begin_s <= one.arrival_s < begin_s + 2_000 for one in day) for begin_s in (0, 3_000))
    assert 0.4 < night / noon < 0.7
