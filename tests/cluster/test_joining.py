"""Who may join: machines with the router's keys, release, weights and layout, under a name of their own."""

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from tests.cluster.conftest import MODELED, Cluster, node_state, run_command, wait_until_serving
from tests.cluster.hosts import Host, hosts
from tests.live_process import StartCommand
from tests.live_server import LiveServer, eventually

from diptych.wire.cluster_keys import create_keys

JOIN = ("--join-timeout-s", "3")


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with hosts("rack1") as [made]:
        yield made


@pytest.fixture(scope="module")
def cluster(start_module_command: StartCommand, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    cluster = Cluster(start_module_command, keys, *MODELED, "--modeled-time-scale", "0", "--max-model-len", "8192")
    cluster.head.wait_for_server()
    return cluster


@pytest.fixture(scope="module")
def server(cluster: Cluster) -> LiveServer:
    return cluster.head.wait_for_server()


def refusal(cluster: Cluster, host: Host, *arguments: str, keys: Path | None = None, name: str = "stranger") -> str:
    """Return the one line with which a machine that cannot join ends."""
    where = ("--join", host.router_at(cluster.port), "--keys", str(keys or cluster.keys / "node"), "--node", name)
    done = run_command("worker", *where, "--kv-bytes", "2MB", *JOIN, *arguments, prefix=host.prefix)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    return done.stderr.strip().splitlines()[-1]


def test_a_key_that_the_router_does_not_know(cluster: Cluster, host: Host, server: LiveServer, tmp_path: Path) -> None:
    create_keys(tmp_path / "others", ["node"])
    (tmp_path / "others/node/head.key").write_bytes((cluster.keys / "node/head.key").read_bytes())
    line = refusal(cluster, host, keys=tmp_path / "others/node")
    assert line.startswith("error: no answer from ")
    assert "are its keys those of --keys?" in line
    assert "a key that is not allowed" in cluster.head.stderr
    assert server.status()["nodes"] == {}


def test_a_router_that_is_not_the_one_of_the_keys(cluster: Cluster, host: Host, tmp_path: Path) -> None:
    create_keys(tmp_path / "others", ["node"])
    (tmp_path / "others/node/node.key_secret").write_bytes((cluster.keys / "node/node.key_secret").read_bytes())
    assert refusal(cluster, host, keys=tmp_path / "others/node").startswith("error: no answer from ")


@pytest.mark.parametrize(
    "words", [b"GET / HTTP/1.1\r\n\r\n", b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(64), b""]
)
def test_strangers_are_cut_and_wedge_nothing(cluster: Cluster, server: LiveServer, words: bytes) -> None:
    strangers = [socket.create_connection(("127.0.0.1", cluster.port), 10) for _ in range(20)]
    for stranger in strangers:
        stranger.sendall(words)
    begin_s = time.monotonic()
    for stranger in strangers:
        stranger.settimeout(10)
        with stranger, contextlib.suppress(ConnectionResetError):
            while stranger.recv(4096):
                pass
    assert time.monotonic() - begin_s < 10
    server.complete("Hello")


def test_a_peer_without_a_key(cluster: Cluster, server: LiveServer) -> None:
    context = zmq.Context[zmq.Socket[bytes]]()
    with context.socket(zmq.DEALER) as plain:
        plain.setsockopt(zmq.LINGER, 0)
        plain.connect(f"tcp://127.0.0.1:{cluster.port}")
        for _ in range(100):
            plain.send(b"DPT nonsense")
        assert not plain.poll(500)
    context.term()
    assert server.status()["nodes"] == {}
    server.complete("Hello")


def test_a_context_that_does_not_fit(cluster: Cluster, host: Host) -> None:
    line = refusal(cluster, host, "--kv-bytes", "100KB", "--decode", "2")
    assert "--max-model-len 8192 is more than what a decode worker's share of KV holds" in line


def test_other_weights(cluster: Cluster, host: Host, tmp_path: Path, model_dir: Path) -> None:
    copy = tmp_path / "other"
    copy.mkdir()
    for path in model_dir.iterdir():
        if path.suffix == ".bin":
            (copy / path.name).write_bytes(path.read_bytes()[:-1] + b"x")
        else:
            (copy / path.name).symlink_to(path)
    line = refusal(cluster, host, "--model", str(copy))
    assert "is not the router's model: here " in line


@pytest.mark.parametrize("name", ["head", "Rack 1", "a" * 37])
def test_names_that_are_none(cluster: Cluster, host: Host, name: str) -> None:
    assert "name" in refusal(cluster, host, name=name)


def test_a_name_that_is_taken(cluster: Cluster, host: Host, server: LiveServer) -> None:
    machine = cluster.join(host)
    wait_until_serving(server, "rack1")
    line = refusal(cluster, host, name="rack1")
    assert "a machine called rack1 is in already" in line
    assert node_state(server, "rack1") == "joined"
    machine.close()
    eventually(lambda: node_state(server, "rack1") is None, "it has left")


def test_a_key_that_is_taken_away(cluster: Cluster, host: Host, server: LiveServer) -> None:
    machine = cluster.join(host, key="other")
    wait_until_serving(server, "rack1")
    assert server.status()["nodes"]["rack1"]["key_name"] == "other"
    allowed = cluster.keys / "head/nodes/other.key"
    content = allowed.read_bytes()
    allowed.unlink()
    eventually(lambda: node_state(server, "rack1") == "lost", "it is not heard any more")
    server.complete("Hello")
    allowed.write_bytes(content)
    wait_until_serving(server, "rack1")
    machine.close()
    eventually(lambda: node_state(server, "rack1") is None, "it has left")


def test_nobody_answers(host: Host, cluster: Cluster) -> None:
    begin_s = time.monotonic()
    where = ("--join", "127.0.0.1:1", "--keys", str(cluster.keys / "node"), "--node", "lonely")
    done = run_command("worker", *where, "--join-timeout-s", "1")
    assert done.returncode == 1
    assert "no answer from 127.0.0.1:1" in done.stderr
    assert time.monotonic() - begin_s < 20


def test_a_cluster_without_keys(tmp_path: Path) -> None:
    done = run_command("serve", "--cluster-listen", "127.0.0.1:7070")
    assert "a cluster needs both: set --cluster-listen, and --cluster-keys (`diptych keys`)" in done.stderr
    done = run_command("serve", "--cluster-listen", "nonsense", "--cluster-keys", str(tmp_path))
    assert "is not HOST:PORT" in done.stderr
    done = run_command("serve", "--cluster-listen", "127.0.0.1:7070", "--cluster-keys", str(tmp_path))
    assert "cannot read" in done.stderr and "`diptych keys` makes keys" in done.stderr
