"""SLOs are written for people."""

import pytest

from diptych.core.errors import ConfigError
from diptych.core.slo import Slo


@pytest.mark.parametrize(
    ("text", "slo"), [("1s,50ms", Slo(1.0, 0.05)), (" 500ms , 0.1s ", Slo(0.5, 0.1)), ("8s,33.3ms", Slo(8.0, 0.0333))]
)
def test_both_limits_are_read(text: str, slo: Slo) -> None:
    assert Slo.parse(text) == slo
    assert Slo.parse(str(slo)) == slo


@pytest.mark.parametrize("text", ["", "1s", "1,2", "1s,50ms,3s", "1 h,5ms", "-1s,5ms", "0s,5ms", "fast,slow"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        Slo.parse(text)
