"""Goodput results to tables: medians over seeds, ratios seed by seed, and one line for what cannot be read."""

import subprocess
import sys
from pathlib import Path

import pytest

from diptych.bench.record import Recorder, Sweep, TargetFacts, new_result
from diptych.bench.search import Goodput
from diptych.core.errors import BenchError
from diptych.core.slo import Slo
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
