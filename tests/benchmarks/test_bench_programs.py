"""Each benchmark runs to its end on the modeled engine and leaves a result; what it measures then decides nothing."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.cluster.hosts import why_no_namespaces

from harness.result import load_result

FOLDER = Path(__file__).parents[2] / "benchmarks"
COMMON = ["--pairs", "1", "--engine", "modeled", "--modeled-time-scale", "0.05"]
PROGRAMS = {
    "bare_engine": "--chunk-tokens 16 32 --chunk-past 0 --batch-sizes 1 4 --contexts 64",
    "engine_speed": "--prompts 40 --batch 2 --context 40 --steps 2 --cache-gb 1",
    "prefill_speed": "--num-tokens 100",
    "decode_overhead": "--batch-sizes 1 4 --max-tokens 64",
    "handoff_latency": "--num-requests 2 --num-background 2",
    "startup_and_memory": "--num-requests 2 --prompt-tokens 64",
    "routing_speed": "--num-workers 40 --num-decisions 3",
    "several_routers": "--num-frontends 2 --gaps-ms 0 5 --num-bursts 2",
    "frontend_speed": "--num-streams 4 --num-tokens 60 --profile-s 1",
    "structured_output": "--batch-sizes 2 --max-tokens 64",
    "prefix_index": "--num-workers 20 --blocks-per-worker 320 --prompt-blocks 100 --num-prompts 20 --peer none",
    "resume": "--num-tokens 80 --disturb-after 20 --setups 1P+2D",
    "multi_turn_cache": "--num-chats 2 --num-turns 3 --first-words 120 --answer-tokens 40",
    "transfer": "--transports tcp --sizes-mib 1 --num-small 5",
    "remote_handover": "--transports tcp --prompt-tokens 64",
    "distant_handover": "--transports tcp --prompt-tokens 64 --delays-ms 2",
    "interference": "--phase-s 1 --num-answers 2 --prompt-tokens 100",
    "copy_cost": "--num-answers 2 --context 40 --num-steps 20 --prefix-blocks 8",
    "disk_cost": "--phase-s 1 --num-answers 2 --prompt-tokens 640 --prompts-per-s 5 --num-prompts 40 --kv-mb 0.15",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_program_measures_and_writes_a_result(name: str, tmp_path: Path) -> None:
    if name == "distant_handover" and (why := why_no_namespaces()) is not None:
        pytest.skip(f"no wire can be made here: {why}")
    program = str(FOLDER / f"{name}.py")
    command = [sys.executable, program, *COMMON, "--output", str(tmp_path), *PROGRAMS[name].split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    result = load_result(tmp_path / f"{name}.json")
    assert result.benchmark == name
    assert result.settings["pairs"] == 1
    assert result.findings
    assert all(finding.measured.low <= finding.measured.median <= finding.measured.high for finding in result.findings)
    assert result.findings[-1].measured_text in done.stdout
    report = subprocess.run(
        [sys.executable, str(FOLDER / "run_all.py"), "--report-only", "--output", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert report.returncode == 0, report.stderr
    assert f"## {name}" in (tmp_path / "README.md").read_text()


def test_wrong_model_ends_as_one_line() -> None:
    command = [sys.executable, str(FOLDER / "prefill_speed.py"), "--model", "/no/such/folder"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr
