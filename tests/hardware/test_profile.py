"""Profiles come back as they were written; what is no profile gets one line that says what to do."""

from pathlib import Path

import pytest

from diptych.core.cost_model import CostModel
from diptych.core.errors import ConfigError
from diptych.hardware.profile import (
    FitError,
    Interference,
    Profile,
    WorkerCosts,
    profile_path,
    read_profile,
    write_profile,
)


def profile(*core_counts: int) -> Profile:
    return Profile(
        model_name="m",
        model_key="abc",
        engine="modeled",
        cpu="a CPU",
        measured_at="2026-11-24T00:00:00+00:00",
        versions={"python": "3.11"},
        workers=[
            WorkerCosts(num_cores=count, costs=CostModel.linear(1.0 / count, 0.1, 0.0), error=FitError(0.01, 0.1, 9))
            for count in core_counts
        ],
        interference=Interference(decode_factor=1.1, prefill_factor=1.2),
        handover_s=0.001,
    )


def test_a_profile_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = profile_path(tmp_path, "abc", "modeled", "a CPU")
    write_profile(profile(1, 2), path)
    assert read_profile(path) == profile(1, 2)
    assert [file.name for file in path.parent.iterdir()] == [path.name], "nothing else is left"


def test_models_and_cpus_have_profiles_of_their_own(tmp_path: Path) -> None:
    paths = {
        profile_path(tmp_path, key, engine, cpu)
        for key in ("abc", "def")
        for engine in ("f32", "bf16")
        for cpu in ("a CPU", "another / CPU")
    }
    assert len(paths) == 8
    assert {path.parent for path in paths} == {tmp_path / "profiles"}


@pytest.mark.parametrize(("asked", "base_s"), [(1, 1.0), (2, 1.0), (3, 0.25), (4, 0.25), (64, 0.25)])
def test_the_nearest_number_of_cores_counts(asked: int, base_s: float) -> None:
    assert profile(1, 4).costs_for(asked) == CostModel.linear(base_s, 0.1, 0.0)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "cannot read"),
        ("{", "is no profile"),
        ("{}", "diptych calibrate"),
        ("\xff", "is no profile"),
    ],
)
def test_what_is_no_profile_is_said_in_one_line(tmp_path: Path, content: str | None, complaint: str) -> None:
    path = tmp_path / "profile.json"
    if content is not None:
        path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigError, match=complaint) as raised:
        read_profile(path)
    assert "\n" not in str(raised.value)


def test_a_profile_without_workers_is_refused(tmp_path: Path) -> None:
    write_profile(profile(), tmp_path / "p.json")
    with pytest.raises(ConfigError, match="another release"):
        read_profile(tmp_path / "p.json")


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write the profile"):
        write_profile(profile(1), tmp_path / "file" / "p.json")
