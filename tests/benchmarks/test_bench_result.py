"""Verdicts, and results that survive the way to disk and back."""

from pathlib import Path

import pytest

from diptych.bench.statistics import Estimate
from diptych.core.errors import BenchError
from diptych.hardware.host import host_facts, software_versions
from harness.report import write_report
from harness.result import Finding, Result, load_result, save_result, single


def _finding(low: float, high: float, at_most: float | None = None, at_least: float | None = None) -> Finding:
    estimate = Estimate((low + high) / 2, low, high, 5)
    return Finding(what="x", measured=estimate, unit="ms", at_most=at_most, at_least=at_least)


@pytest.mark.parametrize(
    ("finding", "verdict"),
    [
        (_finding(1, 2, at_most=2), "met"),
        (_finding(1, 2.1, at_most=2), "unclear"),
        (_finding(2.1, 3, at_most=2), "missed"),
        (_finding(0.9, 1, at_least=0.9), "met"),
        (_finding(0.8, 1, at_least=0.9), "unclear"),
        (_finding(0.7, 0.8, at_least=0.9), "missed"),
        (_finding(1, 2), "reported"),
    ],
)
def test_verdict_needs_the_whole_interval(finding: Finding, verdict: str) -> None:
    assert finding.verdict == verdict


def _result(name: str) -> Result:
    return Result(
        benchmark=name,
        started_at="2026-11-23T00:00:00+00:00",
        duration_s=1.0,
        seed=3,
        settings={"pairs": 5, "engine": "modeled"},
        host=host_facts(),
        versions=software_versions(),
        findings=[
            _finding(1, 2, at_most=3),
            Finding(what="counted", measured=single(4), unit="B"),
        ],
        samples={"a_s": [0.123456789, 2.0], "nested": [{"b": (1, 0.5)}], "text": "kept"},
    )


def test_result_comes_back_as_it_was_saved_but_for_digits_below_the_clock(tmp_path: Path) -> None:
    result = _result("first")
    back = load_result(save_result(result, tmp_path))
    assert back.samples == {"a_s": [0.123457, 2.0], "nested": [{"b": [1, 0.5]}], "text": "kept"}
    assert (back.findings, back.host, back.versions) == (result.findings, result.host, result.versions)


def test_report_has_a_row_a_finding_in_the_order_asked_for(tmp_path: Path) -> None:
    for name in ("second", "first"):
        save_result(_result(name), tmp_path)
    text = write_report(["first", "missing", "second"], tmp_path).read_text()
    assert text.index("## first") < text.index("## second")
    assert "missing" not in text
    assert text.count("| x | at most 3 ms | 1.5 ms (1 to 2) | **met** |") == 2
    assert text.count("| counted | - | 4 B |  |") == 2


def test_report_of_nothing_and_of_rubbish_says_so(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="no results"):
        write_report(["first"], tmp_path)
    (tmp_path / "first.json").write_text("{}")
    with pytest.raises(BenchError, match=r"first\.json is no benchmark result"):
        write_report(["first"], tmp_path)
