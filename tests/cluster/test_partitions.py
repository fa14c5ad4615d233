"""A machine that cannot be reached: its requests go on elsewhere, it computes for nobody, and it joins again."""

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.cluster.conftest import MODELED, NODE_TIMEOUT_S, Cluster, node_state, open_streams, wait_until_serving
from tests.cluster.hosts import Host, hosts
from tests.live_process import StartCommand
from tests.live_server import LiveServer, eventually
from tests.modeled_answers import expected_text, make_prompt

from diptych.frontend.text.tokenizer import Tokenizer

NOTICED_WITHIN_S = 3 * NODE_TIMEOUT_S

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two() -> Iterator[list[Host]]:
    with hosts("near", "far") as made:
        yield made


@pytest.fixture(scope="module")
def cluster(
    two: list[Host], start_module_command: StartCommand, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """A router without workers of its own, and two machines with a prefill and a decode worker each."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    scale = ("--modeled-time-scale", "0.3", "--no-adaptive", "--routing", "round-robin")
    cluster = Cluster(start_module_command, keys, *MODELED, *scale, "--prefill", "0", "--decode", "0")
    for host in two:
        cluster.join(host)
    wait_until_serving(cluster.head.wait_for_server(), "near", "far")
    yield cluster
    cluster.end_in_order()


@pytest.fixture(scope="module")
def server(cluster: Cluster) -> LiveServer:
    return cluster.head.wait_for_server()


@pytest.fixture
def far(two: list[Host], server: LiveServer) -> Iterator[Host]:
    """The machine whose cable is pulled; put back and in again at the end."""
    yield two[1]
    two[1].heal()
    wait_until_serving(server, "far")
    server.wait_until_idle()


def load_of(server: LiveServer, worker: str) -> int:
    status = server.worker(worker)
    return int(status["num_running"] + status["num_waiting"])


def test_cut_off_while_answers_are_written(server: LiveServer, far: Host, tokenizer: Tokenizer) -> None:
    prompts = [make_prompt(50, seed) for seed in range(4)]
    with open_streams(server, prompts, 3, max_tokens=160) as opened:
        eventually(lambda: load_of(server, "far.decode-0") > 0, "answers that are written far away")
        far.cut()
        cut_s = time.monotonic()
        eventually(lambda: node_state(server, "far") == "lost", "it is given up", NOTICED_WITHIN_S)
        texts = [stream.read().completion().text for stream in opened]
        assert time.monotonic() - cut_s < 30
    assert texts == [expected_text(tokenizer, prompt, 160) for prompt in prompts]
    assert sum(record["num_migrations"] for record in server.records()[-4:]) == 2
    far.heal()
    wait_until_serving(server, "far")
    server.wait_until_idle()  # the machine that came back holds nothing either
    again = [server.complete(prompt) for prompt in prompts]
    assert [answer.text for answer in again] == [expected_text(tokenizer, prompt, 16) for prompt in prompts]


def test_cut_off_while_a_prompt_is_read(server: LiveServer, far: Host, tokenizer: Tokenizer) -> None:
    prompts = [make_prompt(1200, 10), make_prompt(1200, 11)]
    with server.unanswered(prompts[0]), server.unanswered(prompts[1]):
        eventually(lambda: server.worker("far.prefill-0")["num_running"] == 1, "a prompt that is read far away")
        far.cut()
        eventually(lambda: node_state(server, "far") == "lost", "it is given up", NOTICED_WITHIN_S)
    answers = [server.complete(prompt) for prompt in prompts]
    assert [answer.text for answer in answers] == [expected_text(tokenizer, prompt, 16) for prompt in prompts]


def test_a_short_cut_costs_a_pause_only(server: LiveServer, far: Host, tokenizer: Tokenizer) -> None:
    prompts = [make_prompt(50, 20 + seed) for seed in range(4)]
    with open_streams(server, prompts, 3, max_tokens=100) as opened:
        far.cut()
        time.sleep(NODE_TIMEOUT_S / 5)
        far.heal()
        texts = [stream.read().completion().text for stream in opened]
    assert texts == [expected_text(tokenizer, prompt, 100) for prompt in prompts]


def test_machines_that_stand_still_and_die(
    cluster: Cluster, server: LiveServer, far: Host, tokenizer: Tokenizer
) -> None:
    """An agent that is killed takes its workers with it; what they had goes on elsewhere."""
    prompts = [make_prompt(50, 30 + seed) for seed in range(4)]
    with open_streams(server, prompts, 3, max_tokens=120) as opened:
        machine = cluster.machines["far"]
        machine.process.send_signal(signal.SIGKILL)
        texts = [stream.read().completion().text for stream in opened]
    assert texts == [expected_text(tokenizer, prompt, 120) for prompt in prompts]
    machine.wait_until_gone()
    eventually(lambda: node_state(server, "far") == "lost", "it is given up")
    cluster.join(far)  # under the same name, which is free as soon as the dead one is given up
    wait_until_serving(server, "far")
    assert server.complete(prompts[0]).text == expected_text(tokenizer, prompts[0], 16)


def test_cut_off_while_it_leaves(cluster: Cluster, server: LiveServer, far: Host, tokenizer: Tokenizer) -> None:
    """It wanted to go: nobody waits for it to come back, and it does not wait for its router either."""
    prompts = [make_prompt(50, 40 + seed) for seed in range(4)]
    with open_streams(server, prompts, 3, max_tokens=300) as opened:
        machine = cluster.machines["far"]
        machine.signal(signal.SIGTERM)
        eventually(lambda: node_state(server, "far") == "leaving", "it has said that it leaves")
        far.cut()
        eventually(lambda: node_state(server, "far") is None, "it is forgotten", NOTICED_WITHIN_S)
        texts = [stream.read().completion().text for stream in opened]
    assert texts == [expected_text(tokenizer, prompt, 300) for prompt in prompts]
    assert machine.wait_for_exit() == 0, machine.stderr
    machine.wait_until_gone()
    far.heal()
    cluster.join(far)
    wait_until_serving(server, "far")


def test_without_any_machine_requests_wait(server: LiveServer, two: list[Host], tokenizer: Tokenizer) -> None:
    for host in two:
        host.cut()
    eventually(lambda: server.http.get("/ready").status_code == 503, "nobody serves", NOTICED_WITHIN_S)
    prompt = make_prompt(50, 40)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(server.complete, prompt)
        eventually(lambda: server.status()["num_requests"] == 1, "a request that waits")
        for host in two:
            host.heal()
        assert asked.result().text == expected_text(tokenizer, prompt, 16)
    wait_until_serving(server, "near", "far")
