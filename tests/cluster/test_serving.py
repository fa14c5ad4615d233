"""Several machines serve as one: equal answers, times on the router's clock, drains, restarts, the status of all."""

import itertools
import os
import re
import signal
import time
from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from tests.cluster.conftest import MODELED, Cluster, node_state, open_streams, wait_until_serving
from tests.cluster.hosts import Host, hosts
from tests.live_process import StartCommand
from tests.live_server import LiveServer, eventually
from tests.modeled_answers import expected_text, make_prompt
from typer.testing import CliRunner

from diptych.cli import app
from diptych.core.events import Lifecycle
from diptych.frontend.text.tokenizer import Tokenizer

ORDER = [
    Lifecycle.ARRIVED,
    Lifecycle.ROUTED,
    Lifecycle.RESERVED,
    Lifecycle.GRANTED,
    Lifecycle.PREFILL_STARTED,
    Lifecycle.FIRST_TOKEN,
    Lifecycle.JOINED,
    Lifecycle.FINISHED,
]
CLOCK_SLACK_S = 0.02
"""By how much times of two machines may be out of order: half of a round trip, on a busy machine."""


@pytest.fixture(scope="module")
def two() -> Iterator[list[Host]]:
    with hosts("rack1", "rack2") as made:
        yield made


@pytest.fixture(scope="module")
def cluster(
    two: list[Host], start_module_command: StartCommand, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """A router with one prefill and one decode worker, and two machines that have the same."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    cluster = Cluster(
        start_module_command, keys, *MODELED, "--modeled-time-scale", "0.3", "--no-adaptive", "--routing", "round-robin"
    )
    for host in two:
        cluster.join(host)
    wait_until_serving(cluster.head.wait_for_server(), "rack1", "rack2")
    yield cluster
    cluster.end_in_order()


@pytest.fixture(scope="module")
def server(cluster: Cluster) -> LiveServer:
    return cluster.head.wait_for_server()


def pids(server: LiveServer) -> dict[str, int]:
    return {worker: info["status"]["pid"] for worker, info in server.status()["workers"].items()}


def test_answers_are_equal_wherever_they_are_written(server: LiveServer, tokenizer: Tokenizer) -> None:
    prompts = [make_prompt(40 + 7 * seed, seed) for seed in range(12)]
    begin_s = time.monotonic()
    answers = server.complete_all(prompts)
    end_s = time.monotonic()
    assert [answer.text for answer in answers] == [expected_text(tokenizer, prompt, 16) for prompt in prompts]
    records = server.records()[-len(prompts) :]
    assert {record["decode_worker"] for record in records} == {"decode-0", "rack1.decode-0", "rack2.decode-0"}
    for record in records:
        node = record["decode_worker"].rpartition("decode")[0]
        assert record["prefill_worker"] == f"{node}prefill-0", "who reads a prompt is on the machine of who answers"
        times = [record["timeline"][event] for event in ORDER]
        assert begin_s <= times[0] and times[-1] <= end_s + CLOCK_SLACK_S
        assert all(later >= earlier - CLOCK_SLACK_S for earlier, later in itertools.pairwise(times)), record
    server.wait_until_idle()


def test_the_clocks_of_machines_are_known(server: LiveServer, two: list[Host]) -> None:
    for host in two:
        node = server.status()["nodes"][host.name]
        assert node["clock_offset_s"] == pytest.approx(-host.clock_offset_s, abs=0.05)
        assert 0 < node["round_trip_s"] < 1


def test_prefixes_on_other_machines_are_found(server: LiveServer, tokenizer: Tokenizer) -> None:
    prefix = make_prompt(320, 99)
    for _ in range(3):  # round robin: one each
        server.complete(prefix)
    prompt = [*prefix, *make_prompt(10, 98)]
    answers = [server.complete(prompt) for _ in range(3)]
    assert [answer.num_cached_tokens for answer in answers] == [320] * 3
    assert {answer.text for answer in answers} == {expected_text(tokenizer, prompt, 16)}


def test_the_status_of_all_machines_is_shown(server: LiveServer) -> None:
    shown = CliRunner().invoke(app, ["cluster", "status", "--url", server.url], env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    lines = [re.split(r"\s+", line.strip()) for line in shown.output.splitlines()]
    by_name = {line[0]: line for line in lines if line[0]}
    assert by_name["rack1"][1] == by_name["rack2"][1] == "joined"
    assert all(ip_address(by_name[name][2]).version == 4 for name in ("rack1", "rack2"))
    assert by_name["head"][1] == "ready"
    assert "rack2.decode-0" in by_name


def test_a_worker_elsewhere_is_drained_and_started_again(server: LiveServer) -> None:
    before = server.incarnation("rack1.decode-0")
    answer = server.http.post("/diptych/workers/rack1.decode-0/drain", json={"timeout_s": 5, "will_return": True})
    assert answer.json()["worker"]["node"] == "rack1"
    eventually(lambda: server.incarnation("rack1.decode-0") > before, "another life")
    server.wait_until_up("rack1.decode-0")
    server.http.post("/diptych/workers/rack1.decode-0/drain", json={"timeout_s": 5, "will_return": False})
    eventually(lambda: server.worker("rack1.decode-0")["state"] == "dead", "out of service")
    server.http.post("/diptych/workers/rack1.decode-0/start")
    server.wait_until_up("rack1.decode-0")


def test_a_worker_elsewhere_that_dies_is_replaced_there(server: LiveServer, tokenizer: Tokenizer) -> None:
    prompts = [make_prompt(50, 200 + seed) for seed in range(6)]
    with open_streams(server, prompts, 3, max_tokens=150) as opened:
        os.kill(server.worker("rack2.decode-0")["pid"], signal.SIGKILL)
        texts = [stream.read().completion().text for stream in opened]
    assert texts == [expected_text(tokenizer, prompt, 150) for prompt in prompts]
    server.wait_until_up("rack2.decode-0")
    server.wait_until_idle()


def test_machines_join_the_next_life_of_the_router(cluster: Cluster, server: LiveServer, tokenizer: Tokenizer) -> None:
    prefix = make_prompt(320, 97)
    for _ in range(3):
        server.complete(prefix)
    workers = pids(server)
    [front] = [pid for pid, line in cluster.head.processes().items() if "diptych.launch.front" in line]
    with server.stream(make_prompt(60, 5), max_tokens=2000) as one, server.stream(make_prompt(60, 6)) as other:
        one.read(2)
        other.read(2)
        os.kill(front, signal.SIGKILL)
        time.sleep(0.1)

    def is_back() -> bool:
        try:
            return node_state(server, "rack1") == node_state(server, "rack2") == "joined"
        except Exception:
            return False

    eventually(is_back, "all machines are in again")
    wait_until_serving(server, "rack1", "rack2")
    assert pids(server) == workers, "the workers have lived on"
    server.wait_until_idle()
    prompt = [*prefix, *make_prompt(10, 96)]
    for _ in range(3):
        answer = server.complete(prompt)
        assert answer.text == expected_text(tokenizer, prompt, 16)
        assert answer.num_cached_tokens == 320, "what they had cached is known to the new router"


def test_a_machine_leaves_in_order(cluster: Cluster, server: LiveServer, two: list[Host], tokenizer: Tokenizer) -> None:
    prompts = [make_prompt(50, 300 + seed) for seed in range(6)]
    with open_streams(server, prompts, 2, max_tokens=100) as opened:
        assert server.http.post("/diptych/nodes/rack2/drain").status_code == 200
        texts = [stream.read().completion().text for stream in opened]
    assert texts == [expected_text(tokenizer, prompt, 100) for prompt in prompts]
    machine = cluster.machines["rack2"]
    assert machine.wait_for_exit() == 0, machine.stderr
    machine.wait_until_gone()
    assert "Traceback" not in machine.stderr
    eventually(lambda: node_state(server, "rack2") is None, "rack2 is forgotten")
    assert "rack2.decode-0" not in server.status()["workers"]
    cluster.join(two[1])  # for those who come after
    wait_until_serving(server, "rack2")
