"""A readable page out of results: one table a benchmark, and on which machine and software it ran."""

from collections.abc import Sequence
from pathlib import Path

from diptych.core.errors import BenchError
from harness.result import Finding, Result, load_result

HEADING = """# Benchmark results

Written by `python benchmarks/run_all.py`; do not edit. Medians with 95 % bootstrap intervals. *met* and *missed*: the
whole interval is on that side of the target; *unclear*: it is on both. Raw samples are in the JSON files beside this.
"""


def write_report(names: Sequence[str], directory: Path) -> Path:
    """Write `directory`/README.md from the results of `names` that are there.

    Raises: BenchError if there is none, or one cannot be read.
    """
    paths = [directory / f"{name}.json" for name in names]
    results = [load_result(path) for path in paths if path.exists()]
    if not results:
        raise BenchError(f"{directory} holds no results; run the benchmarks first")
    path = directory / "README.md"
    path.write_text(HEADING + "".join(_section(result, directory) for result in results), encoding="utf-8")
    return path


def _section(result: Result, directory: Path) -> str:
    host = result.host
    lines = [
        f"\n## {result.benchmark}\n",
        f"{result.started_at}, {result.duration_s:.0f} s, seed {result.seed}, engine {result.settings['engine']}, "
        f"{result.settings['pairs']} pairs; {host.cpu_model}, {host.num_cores} cores ({', '.join(host.vector_flags)}), "
        f"Linux {host.kernel}, load {host.load_average_1m:.1f} before; commit {result.versions['commit']}.\n",
        "| what | target | measured | verdict |",
        "|---|---|---|---|",
        *(_row(finding) for finding in result.findings),
    ]
    if (directory / f"{result.benchmark}.png").exists():
        lines.append(f"\n![{result.benchmark}]({result.benchmark}.png)")
    if "cost_model" in result.samples:
        constants = ", ".join(f"{name}={value}" for name, value in result.samples["cost_model"].items())
        lines.append(f"\nFitted cost model: `CostModel({constants})`.")
    return "\n".join(lines) + "\n"


def _row(finding: Finding) -> str:
    verdict = "" if finding.verdict == "reported" else f"**{finding.verdict}**"
    return f"| {finding.what.strip()} | {finding.target_text} | {finding.measured_text} | {verdict} |"
