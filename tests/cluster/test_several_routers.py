"""A machine that joins serves for all routers, and goes on for the others when one of them dies."""

import os
import signal
from collections.abc import Iterator

import httpx
import pytest
from tests.cluster.conftest import MODELED, Cluster, wait_until_serving
from tests.cluster.hosts import Host, hosts, why_no_namespaces
from tests.live_process import StartCommand
from tests.live_server import LiveServer, eventually
from tests.modeled_answers import expected_text, make_prompt

from diptych.frontend.text.tokenizer import Tokenizer

pytestmark = pytest.mark.slow


class HomeHost:
    """This machine under another name: a forwarder in place of a cable has one port, and routers have one each."""

    def __init__(self) -> None:
        self.name = "rack1"
        self.clock_offset_s = 0.0
        self.prefix: list[str] = []

    def router_at(self, port: int) -> str:
        return f"127.0.0.1:{port}"

    def cut(self) -> None:
        raise NotImplementedError

    def heal(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    if why_no_namespaces() is None:
        with hosts("rack1") as [made]:
            yield made
    else:
        yield HomeHost()


@pytest.fixture(scope="module")
def cluster(
    host: Host, start_module_command: StartCommand, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """Two frontends, and one machine that has all the workers."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    flags = ("--frontends", "2", "--prefill", "0", "--decode", "0", "--modeled-time-scale", "0.3", "--no-adaptive")
    cluster = Cluster(start_module_command, keys, *MODELED, *flags)
    servers = cluster.head.wait_for_servers()
    cluster.join(host, "--decode", "2")
    for server in servers:
        wait_until_serving(server, "rack1")
    yield cluster
    cluster.end_in_order()


@pytest.fixture(scope="module")
def servers(cluster: Cluster) -> list[LiveServer]:
    return cluster.head.wait_for_servers()


def test_both_see_its_workers_and_what_the_other_has_placed(servers: list[LiveServer], tokenizer: Tokenizer) -> None:
    one, other = servers
    prompts = [make_prompt(60, seed) for seed in range(2)]
    with one.stream(prompts[0], max_tokens=60) as first, other.stream(prompts[1], max_tokens=60) as second:
        for stream, prompt in zip((first, second), prompts, strict=True):
            assert stream.read().completion().text == expected_text(tokenizer, prompt, 60)
    owners = {server.records()[-1]["decode_worker"] for server in servers}
    assert owners == {"rack1.decode-0", "rack1.decode-1"}
    for server in servers:
        server.wait_until_idle()


def test_it_goes_on_for_one_router_when_the_other_dies_and_joins_its_next_life(
    cluster: Cluster, servers: list[LiveServer], tokenizer: Tokenizer
) -> None:
    one, other = servers
    prompts = [make_prompt(60, 10 + seed) for seed in range(2)]
    with one.stream(prompts[0], max_tokens=200) as whole, other.stream(prompts[1], max_tokens=4000) as cut:
        whole.read(2)
        cut.read(2)
        [pid] = [pid for pid, line in cluster.head.processes().items() if "--name frontend-1 " in line]
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(httpx.TransportError):
            cut.read()
        assert whole.read().completion().text == expected_text(tokenizer, prompts[0], 200)

    def is_ready() -> bool:
        try:
            return other.http.get("/ready").status_code == 200
        except httpx.TransportError:
            return False

    eventually(is_ready, "its next life, with the machine's workers")
    for server in servers:
        wait_until_serving(server, "rack1")
        server.wait_until_idle()
    assert other.complete(prompts[1]).text == expected_text(tokenizer, prompts[1], 16)
    assert "Traceback" not in cluster.machines["rack1"].stderr
