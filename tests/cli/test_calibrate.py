"""`diptych calibrate` on the modeled engine: a whole profile, where `diptych serve` looks for it."""

import os
from pathlib import Path

import pytest
from tests.live_process import StartCommand

from diptych.hardware.profile import read_profile

ENVIRONMENT = {"DIPTYCH_MODELED_TIME_SCALE": "0.02", "DIPTYCH_ENGINE": "modeled", "DIPTYCH_KV_BYTES": "2MB"}


@pytest.mark.slow
def test_a_profile_of_the_whole_machine(start_command: StartCommand, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    command = start_command("calibrate", "--quick", "--output", str(path), variables=ENVIRONMENT)
    assert command.wait_for_exit(90) == 0, command.stderr
    profile = read_profile(path)
    assert profile.engine == "modeled"
    assert profile.workers[0].num_cores == 1
    if len(os.sched_getaffinity(0)) > 1:
        assert profile.interference is not None
        assert profile.handover_s is not None
        assert 0 <= profile.handover_s < 1
    assert "error on unseen steps" in command.stdout
    assert str(path) in command.stdout
