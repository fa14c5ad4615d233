"""Three minutes of mixed load with workers dying, hanging and draining; `make soak` does thirty."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "soak.py"


@pytest.mark.slow
@pytest.mark.timeout(420)
def test_three_minutes_of_trouble(tmp_path: Path) -> None:
    command = [sys.executable, str(PROGRAM), "--minutes", "3", "--output", str(tmp_path), "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    verdicts = json.loads((tmp_path / "soak.json").read_text())["verdicts"]
    assert verdicts
    assert all(verdicts.values())
