"""TOML < environment < flags, and one clear line for every mistake."""

from pathlib import Path

import pytest

from diptych.core.config import ServeConfig
from diptych.core.config_sources import load_config
from diptych.core.errors import ConfigError


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    return tmp_path / "diptych.toml"


def test_the_defaults_are_one_prefill_and_one_decode_worker() -> None:
    config = load_config({}, {}, None)
    assert config == ServeConfig()
    assert (config.num_prefill, config.num_decode, config.mixed) == (1, 1, 0)
    assert (config.host, config.port) == ("127.0.0.1", 8000)


def test_mixed_alone_means_no_other_workers() -> None:
    config = ServeConfig(mixed=2)
    assert (config.num_prefill, config.num_decode) == (0, 0)
    config = ServeConfig(mixed=1, decode=1)
    assert (config.num_prefill, config.num_decode) == (0, 1)


def test_frontends_have_ports_that_follow_each_other() -> None:
    assert load_config({"port": 65_534, "frontends": 2}, {}, None).frontends == 2
    assert load_config({"port": 0, "frontends": 16}, {}, None).frontends == 16
    with pytest.raises(ConfigError, match="3 frontends from port 65534 on: there is no port above 65535"):
        load_config({"port": 65_534, "frontends": 3}, {}, None)


def test_routing_follows_the_set_up_unless_it_is_named() -> None:
    assert ServeConfig().routing_name == "predicted"
    assert ServeConfig(adaptive=False).routing_name == "overlap-load"
    assert ServeConfig(adaptive=False, routing="random").routing_name == "random"


def test_flags_win_over_the_environment_which_wins_over_the_file(toml: Path) -> None:
    toml.write_text('port = 1\nprefill = 2\ndecode = 3\nkv_bytes = "2GB"\ncores = [0, 1]\n')
    environ = {"DIPTYCH_PORT": "2", "DIPTYCH_PREFILL": "5", "HOME": "/"}
    config = load_config({"port": 3, "host": None}, environ, toml)
    assert (config.port, config.prefill, config.decode, config.kv_bytes) == (3, 5, 3, 2 * 10**9)
    assert config.cores == [0, 1]


def test_lists_and_switches_come_from_the_environment_too() -> None:
    config = load_config({}, {"DIPTYCH_CORES": "0, 2", "DIPTYCH_EXACT": "true"}, None)
    assert config.cores == [0, 2]
    assert config.exact


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [("1000000", 10**6), ("512MB", 512 * 10**6), ("1.5 GB", 15 * 10**8), ("1GiB", 2**30), ("2g", 2 * 10**9)],
)
def test_sizes(text: str, num_bytes: int) -> None:
    assert load_config({"kv_bytes": text}, {}, None).kv_bytes == num_bytes


@pytest.mark.parametrize(
    ("flags", "environ", "complaint"),
    [
        ({"port": 70000}, {}, r"^--port: .*65535.*70000"),
        ({"kv_bytes": "3 apples"}, {}, r"^--kv-bytes: .*512MB.*3 apples"),
        ({"kv_dtype": "int3"}, {}, r"^--kv-dtype: .*'bf16'.*int3"),
        ({}, {"DIPTYCH_MAX_NUM_SEQS": "many"}, r"^DIPTYCH_MAX_NUM_SEQS: .*many"),
        ({}, {"DIPTYCH_PORTS": "1"}, r"^unknown environment variable DIPTYCH_PORTS; did you mean port\?"),
        ({}, {"DIPTYCH_XYZZY": "1"}, r"see `diptych serve --help`"),
        ({"decode": 0}, {}, r"somebody must write answers"),
        ({"decode": 0, "mixed": 1, "prefill": 1}, {}, r"prefill workers need at least one decode worker"),
        ({"prefill": -1}, {}, r"^--prefill: "),
        ({"routing": "clever"}, {}, r"^--routing: .*'kv-centric'.*clever"),
        ({"routing": "predicted", "adaptive": False}, {}, r"--no-adaptive rules out"),
    ],
)
def test_a_mistake_is_one_line_that_names_its_place(
    flags: dict[str, object], environ: dict[str, str], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint) as error:
        load_config(flags, environ, None)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("prot = 1", "unknown key `prot`; did you mean port"),
        ("port = ", "is no TOML"),
        ("port = 'x'", "`port` in .*: "),
        ("[serve]\nport = 1", "unknown key `serve`"),
    ],
)
def test_a_mistake_in_the_file(toml: Path, text: str, complaint: str) -> None:
    toml.write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        load_config({}, {}, toml)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the configuration .*: No such file"):
        load_config({}, {}, tmp_path / "absent.toml")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is no TOML"):
        load_config({}, {}, tmp_path / "binary")
