"""Servers that are not for everybody: keys from files and the environment, HTTPS, and what none of them tells."""

import json
import os
import socket
import ssl
import stat
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from tests.certificates import make_certificate, shown_certificate
from tests.live_process import Command, StartCommand
from tests.live_server import LiveServer, eventually

import diptych
from diptych.core.errors import ConfigError
from diptych.frontend.tls import client_tls

MODELED = ("--engine", "modeled", "--modeled-time-scale", "0", "--kv-bytes", "2MB", "--port", "0")
ENV_KEY = "a-key-that-nobody-guesses-0123456789"
PROMPT = "a prompt that nobody else shall read"


def make_key(start_command: StartCommand, file: Path, name: str, *flags: str) -> str:
    command = start_command("key", "create", name, "--file", str(file), *flags)
    assert command.wait_for_exit() == 0, command.stderr
    key = command.stdout.strip()
    assert key.startswith("dk-")
    assert key not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    return key


@contextmanager
def modeled(api_key: str | None = None, **changes: Any) -> Iterator[diptych.Server]:
    config = diptych.ServeConfig(port=0, engine="modeled", modeled_time_scale=0.0, kv_bytes=2_000_000, **changes)
    with diptych.serve(config, api_key=api_key) as server:
        yield server


def complaint_of(command: Command) -> str:
    assert command.wait_for_exit() == 1
    (line,) = command.stderr.strip().splitlines()
    return line.removeprefix("error: ")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a self-signed certificate for 127.0.0.1 and its key."""
    return make_certificate(tmp_path_factory.mktemp("tls"))


# Keys


@pytest.mark.slow
def test_keys_of_a_file_from_the_command_line_on(start_command: StartCommand, tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    alice = make_key(start_command, file, "alice", "--requests-per-minute", "2")
    admin = make_key(start_command, file, "ops", "--admin")
    server = start_command("serve", *MODELED, "--api-keys", str(file))
    url = server.wait_for_url()
    assert "Authorization: Bearer" in server.stdout

    assert start_command("status", "--url", url).wait_for_exit() == 1
    assert "wants an API key" in complaint_of(start_command("status", "--url", url, "--api-key", alice))
    shown = start_command("status", "--url", url, "--json", variables={"DIPTYCH_API_KEY": admin})
    assert shown.wait_for_exit() == 0, shown.stderr
    assert json.loads(shown.stdout)["health"] == "ready"

    client = openai.OpenAI(base_url=f"{url}/v1", api_key=alice, max_retries=0)
    model = client.models.list().data[0].id
    for _ in range(2):
        assert client.completions.create(model=model, prompt="Hi", max_tokens=4).usage
    with pytest.raises(openai.RateLimitError, match="2 requests a minute"):
        client.completions.create(model=model, prompt="Hi", max_tokens=4)

    bench = ["bench", "run", url, "--rate", "20", "--duration-s", "1", "--no-report", "--output", str(tmp_path / "out")]
    measured = start_command(*bench, variables={"DIPTYCH_API_KEY": admin})
    assert measured.wait_for_exit() == 0, measured.stderr
    assert admin not in "".join(path.read_text(errors="replace") for path in (tmp_path / "out").iterdir())

    listed = start_command("key", "list", "--file", str(file))
    assert listed.wait_for_exit() == 0
    assert [line.split()[:2] for line in listed.stdout.splitlines()[1:]] == [["alice", "ask"], ["ops", "all"]]
    assert start_command("key", "revoke", "alice", "--file", str(file)).wait_for_exit() == 0
    headers = {"Authorization": f"Bearer {alice}"}
    eventually(lambda: httpx.get(f"{url}/v1/models", headers=headers).status_code == 401, "the end of alice's key")
    client.close()


def test_a_key_of_the_environment(start_command: StartCommand) -> None:
    command = start_command("serve", *MODELED, variables={"DIPTYCH_API_KEY": ENV_KEY})
    url = command.wait_for_url()
    assert httpx.get(f"{url}/v1/models").status_code == 401
    with closing(LiveServer(url, ENV_KEY)) as live:
        assert live.complete("Hi").num_output_tokens == 16
        assert live.status()["health"] == "ready"


def test_the_key_commands_say_what_is_wrong(start_command: StartCommand, tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    make_key(start_command, file, "alice")
    at = ("--file", str(file))
    assert "has a key alice already" in complaint_of(start_command("key", "create", "alice", *at))
    assert "a key's name has" in complaint_of(start_command("key", "create", "a b", *at))
    assert "has no key bob" in complaint_of(start_command("key", "create", "eve", "--cache-group", "bob", *at))
    assert "has no key bob" in complaint_of(start_command("key", "revoke", "bob", *at))
    file.chmod(0o644)
    assert "run chmod 600" in complaint_of(start_command("key", "list", *at))
    assert "run chmod 600" in complaint_of(start_command("serve", *MODELED, "--api-keys", str(file)))


@pytest.mark.parametrize("key", ["short", "with spaces in the middle", "x" * 300, "ünïcödé-key-0123456789", ""])
def test_a_key_that_cannot_be_one_stops_the_start(key: str) -> None:
    with pytest.raises(ConfigError, match="DIPTYCH_API_KEY") as raised, modeled(key):
        pass
    assert not key or key not in str(raised.value)


def test_a_file_without_keys_stops_the_start(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.touch(mode=0o600)
    with pytest.raises(ConfigError, match="has no keys; make one with `diptych key create"), modeled(api_keys=file):
        pass


# Where it listens


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])  # noqa: S104  that is the point
def test_strangers_are_served_only_with_keys_or_if_so_told(host: str) -> None:
    complaint = r"there are no API keys: make some .* or say --allow-unauthenticated"
    with pytest.raises(ConfigError, match=complaint), modeled(host=host):
        pass


def test_with_a_key_it_listens_everywhere() -> None:
    with modeled(ENV_KEY, host="0.0.0.0") as server:  # noqa: S104
        assert server.status()["health"] == "ready"
        assert httpx.get(f"{server.url}/v1/models").status_code == 401


def test_without_one_if_so_told() -> None:
    with modeled(host="0.0.0.0", allow_unauthenticated=True) as server:  # noqa: S104
        assert httpx.get(f"{server.url}/v1/models").status_code == 200


# HTTPS


def test_https(start_command: StartCommand, tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path)
    with modeled(tls_cert=cert, tls_key=key) as server:
        assert server.url.startswith("https://127.0.0.1:")
        assert server.status()["health"] == "ready", "the launcher knows its own certificate"
        with closing(LiveServer(server.url, tls=client_tls(cert))) as live:
            assert live.complete("Hi").num_output_tokens == 16
            with live.stream("Hi") as stream:
                assert stream.read().completion().num_output_tokens == 16
        with pytest.raises(httpx.ConnectError, match="certificate"):
            httpx.get(f"{server.url}/health")
        shown = start_command("status", "--url", server.url, "--ca-cert", str(cert))
        assert shown.wait_for_exit() == 0, shown.stderr
        shown = start_command("status", "--url", server.url, variables={"SSL_CERT_FILE": str(cert)})
        assert shown.wait_for_exit() == 0, shown.stderr
        assert "pass --ca-cert FILE" in complaint_of(start_command("status", "--url", server.url))
        _check_versions(server.url, cert)
        make_certificate(tmp_path)
        port = httpx.URL(server.url).port or 443
        eventually(lambda: shown_certificate(port) == cert.read_text(), "the renewed certificate")
        assert server.status()["health"] == "ready", "the launcher knows the new one, too"


def _check_versions(url: str, cert: Path) -> None:
    """Check that TLS 1.3 and 1.2 are spoken and nothing older, nor plain HTTP."""
    where = httpx.URL(url)
    for version, is_spoken in (
        (ssl.TLSVersion.TLSv1_3, True),
        (ssl.TLSVersion.TLSv1_2, True),
        (ssl.TLSVersion.TLSv1_1, False),
    ):
        context = client_tls(cert)
        context.set_ciphers("DEFAULT:@SECLEVEL=0")  # else our side would refuse the old version
        with pytest.warns(DeprecationWarning) if not is_spoken else _nothing():
            context.minimum_version = context.maximum_version = version
        with socket.create_connection((where.host, where.port or 443), 20) as connection:
            try:
                with context.wrap_socket(connection, server_hostname="127.0.0.1") as secured:
                    assert is_spoken, secured.version()
            except (ssl.SSLError, ConnectionError):
                assert not is_spoken
    with pytest.raises(httpx.HTTPError):
        httpx.get(url.replace("https", "http") + "/health")


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@pytest.mark.slow
def test_bench_measures_over_https(certificate: tuple[Path, Path], start_command: StartCommand, tmp_path: Path) -> None:
    cert, key = certificate
    with modeled(ENV_KEY, tls_cert=cert, tls_key=key) as server:
        flags = ["--rate", "20", "--duration-s", "1", "--no-report", "--output", str(tmp_path / "out")]
        measured = start_command(
            "bench", "run", server.url, *flags, "--ca-cert", str(cert), variables={"DIPTYCH_API_KEY": ENV_KEY}
        )
        assert measured.wait_for_exit() == 0, measured.stderr


def test_files_that_are_no_certificate_stop_the_start(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    cert, key = certificate
    nonsense, absent = tmp_path / "nonsense", tmp_path / "absent"
    nonsense.write_text("no PEM")
    encrypted = tmp_path / "encrypted.pem"
    command = ["openssl", "pkey", "-in", str(key), "-aes256", "-passout", "pass:word", "-out", str(encrypted)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    for files, complaint in (
        ((absent, key), f"--tls-cert: cannot read {absent}"),
        ((cert, absent), f"--tls-key: cannot read {absent}"),
        ((nonsense, key), "are no certificate and its key in PEM"),
        ((key, cert), "are no certificate and its key in PEM"),
        ((cert, nonsense), "are no certificate and its key in PEM"),
        ((cert, encrypted), "is encrypted; give one without a passphrase"),
    ):
        with pytest.raises(ConfigError) as raised, modeled(tls_cert=files[0], tls_key=files[1]):
            pass
        assert complaint in str(raised.value)


def test_one_of_both_files_is_not_enough(start_command: StartCommand, certificate: tuple[Path, Path]) -> None:
    command = start_command("serve", *MODELED, "--tls-cert", str(certificate[0]))
    assert "HTTPS needs both: set --tls-cert and --tls-key" in complaint_of(command)


# What stays private


def test_sockets_and_their_directory_are_for_this_user_alone() -> None:
    before = os.umask(0)
    try:
        with modeled():
            made = list((Path(os.environ["XDG_RUNTIME_DIR"]) / "diptych").rglob("*"))
            assert {stat.S_ISSOCK(path.stat().st_mode) for path in made} == {True, False}
            assert {str(path) for path in made if path.stat().st_mode & 0o077} == set()
    finally:
        os.umask(before)


LOUD = """
import logging
configure = logging.basicConfig
logging.basicConfig = lambda **how: configure(**how | {"level": logging.DEBUG})
"""


def test_logs_hold_no_prompts_and_no_keys(start_command: StartCommand, tmp_path: Path) -> None:
    """Every process logs all that it ever may, libraries too: Python runs this in each before anything else."""
    (tmp_path / "sitecustomize.py").write_text(LOUD)
    variables = {"DIPTYCH_API_KEY": ENV_KEY, "PYTHONPATH": f"{tmp_path}:{Path(diptych.__file__).parents[1]}"}
    command = start_command("serve", *MODELED, "--log-level", "debug", variables=variables)
    url = command.wait_for_url()
    with closing(LiveServer(url, ENV_KEY)) as live:
        live.complete(PROMPT)
        with live.stream(PROMPT) as stream:
            stream.read(1)
        with live.unanswered(PROMPT):
            pass
        chat = {"model": live.model, "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 4}
        for body in (chat, chat | {"nonsense": PROMPT}, chat | {"messages": PROMPT}, chat | {"temperature": PROMPT}):
            live.http.post("/v1/chat/completions", json=body)
        for pattern in (f"{PROMPT}(", f"({PROMPT}){{1000}}{{1000}}", f"[a-z ]+|{PROMPT}"):
            live.post("Hi", structured_outputs={"regex": pattern}, max_tokens=4)
        live.http.post("/v1/completions", content=b"{" + PROMPT.encode())
        live.http.get("/v1/models", params={"api_key": ENV_KEY})
        httpx.get(f"{url}/v1/models", headers={"Authorization": f"Bearer wrong-{ENV_KEY}"})
        live.wait_until_idle()
    command.close()
    told = command.stdout + command.stderr
    assert "(diptych.frontend.event_stream)" in told, "it was loud"
    assert PROMPT not in told
    assert ENV_KEY not in told
