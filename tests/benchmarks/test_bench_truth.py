"""The simulator held against live runs: what is kept of a run, and what is said of several."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

import live_runs
import simulator_truth
from diptych.core.messages import Role
from harness.live_steps import slowness
from harness.truth_report import Comparison, draw, pooled, write_table

RUN = Comparison(
    cell="chat/strict",
    rate_per_s=2.0,
    slo="1s,40ms",
    num_requests=30,
    real=0.9,
    simulated=1.0,
    real_ttft_s=0.3,
    simulated_ttft_s=0.2,
    real_tpot_s=0.02,
    simulated_tpot_s=0.01,
    as_slow=0.8,
    slowness=1.2,
)


def test_steps_are_as_slow_as_they_took_longer_than_expected() -> None:
    assert slowness({"taken_s": 3.0, "expected_s": 2.0}) == 1.5
    assert slowness({"taken_s": 0.0, "expected_s": 0.0}) == 1.0, "of a worker that has done nothing"


def test_each_request_of_a_rate_counts_alike_whatever_its_seed() -> None:
    other = replace(RUN, num_requests=10, real=0.5, simulated=0.6, as_slow=0.6, real_ttft_s=0.7)
    elsewhere = replace(RUN, slo="1s,80ms", real=1.0)
    both, alone = pooled([RUN, elsewhere, other])
    assert (both.num_requests, both.real, both.simulated, both.as_slow) == (40, 0.8, 0.9, 0.75)
    assert both.real_ttft_s == pytest.approx(0.4)
    assert [both.points, both.points_as_slow] == pytest.approx([10, -5])
    assert alone == elsewhere


def test_a_table_and_a_picture(tmp_path: Path) -> None:
    numbers = {"accept_s": 0.03, "step_s": 0.001, "decode_factor": 1.0, "prefill_factor": 1.1}
    write_table([RUN, replace(RUN, cell="chat/colocated-64")], numbers, tmp_path / "table.md")
    rows = [line for line in (tmp_path / "table.md").read_text().splitlines() if line.startswith("| chat")]
    assert rows[1] == (
        "| chat/strict | 2.00 | 30 | 1s,40ms | 90% | 100% | +10 | 80% (1.20) | -10 | 0.30 / 0.20 s | 20.0 / 10.0 ms |"
    )
    draw([RUN], tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1_000


@pytest.mark.slow
def test_live_runs_are_kept_with_how_long_steps_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modeled = "diptych serve --no-adaptive --engine modeled --modeled-time-scale 0.2 --kv-bytes 10MB"
    monkeypatch.setattr(live_runs, "SETUPS", {"strict": modeled})
    monkeypatch.setattr(live_runs, "RATES_PER_S", {"chat": (4.0, 6.0)})
    monkeypatch.setattr(live_runs, "DURATIONS_S", {"chat": 3.0})
    options = live_runs.LiveOptions(output=tmp_path, workloads="chat", setups="strict", rounds=1)
    asyncio.run(live_runs.run_cell(options, "chat", "strict", 1))

    truth = simulator_truth.TruthOptions(results=tmp_path, workloads="chat", setups="strict")
    runs = list(simulator_truth.real_runs(truth))
    assert [(run.cell, run.rate_per_s, run.seed) for run in runs] == [("chat/strict", 6.0, 1), ("chat/strict", 4.0, 1)]
    for run in runs:
        assert run.slowness.keys() == {Role.PREFILL, Role.DECODE}
        # A sleep ends late, never early, where the machine is busy.
        assert all(0.9 < slow < 20 for slow in run.slowness.values())
        assert run.summary.num_failed == 0
