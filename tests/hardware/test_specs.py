import pytest

from diptych.core.errors import ConfigError
from diptych.hardware.specs import DEVICES, LINKS, find_device, find_link


def test_every_number_names_its_source() -> None:
    for device in DEVICES.values():
        assert device.source
        assert device.link.source
        assert device.bf16_flops_per_s > 1e12
        assert device.usd_per_hour > 0
    for link in LINKS.values():
        assert link.source


def test_a_rate_of_any_size_is_a_link() -> None:
    assert find_link("25gbps").bytes_per_s == 25e9 / 8
    assert find_link("40Gbps").bytes_per_s == 5e9
    assert find_link("25gbps").transfer_s(3.125e9) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("name", ["0gbps", "gbps", "nvlink", "-5gbps"])
def test_an_unknown_link_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match="known are"):
        find_link(name)


def test_an_unknown_device_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(ConfigError, match="a100-80g"):
        find_device("tpu")
    assert find_device("H100").name == "h100"
