"""What a library user may rely on."""

import pytest

import diptych


def test_the_public_surface_is_small_and_known() -> None:
    assert sorted(diptych.__all__) == [
        "ConfigError",
        "DiptychError",
        "LaunchError",
        "ModelError",
        "ServeConfig",
        "Server",
        "serve",
    ]
    for name in diptych.__all__:
        assert getattr(diptych, name).__name__ == name


def test_other_names_are_no_attributes() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        diptych.nonsense  # noqa: B018


def test_errors_of_ours_have_one_base() -> None:
    assert issubclass(diptych.LaunchError, diptych.DiptychError)
