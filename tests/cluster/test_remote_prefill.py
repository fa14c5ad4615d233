"""One machine reads the prompts, another writes the answers: equal answers, and whatever goes wrong costs time only."""

import itertools
import os
import signal
import time
from collections.abc import Iterator

import pytest
from tests.cluster.conftest import MODELED, Cluster, node_state, open_streams, wait_until_serving
from tests.cluster.hosts import Host, hosts
from tests.live_process import StartCommand
from tests.live_server import LiveServer, eventually
from tests.modeled_answers import expected_text, make_prompt

from diptych.frontend.text.tokenizer import Tokenizer

STRICT = ("--no-adaptive", "--prefill", "0", "--decode", "1")
READER = "rack1.prefill-0"
SEEDS = itertools.count(10_000)
"""Of prompts that nothing has cached."""


@pytest.fixture(scope="module")
def rack() -> Iterator[Host]:
    with hosts("rack1") as (host,):
        yield host


@pytest.fixture(scope="module")
def server(
    rack: Host, start_module_command: StartCommand, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    """A machine that writes answers, and one that reads their prompts; what arrives is compared with what was sent."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    settings = (*MODELED, *STRICT, "--kv-checksums", "--modeled-time-scale", "0.3")
    cluster = Cluster(start_module_command, keys, *settings)
    cluster.join(rack, "--prefill", "1", "--decode", "0")
    wait_until_serving(cluster.server, "rack1")
    yield cluster.server


def new_prompts() -> list[list[int]]:
    return [make_prompt(700 + 50 * number, next(SEEDS)) for number in range(6)]


def readers(server: LiveServer, number: int) -> list[str | None]:
    return [record["prefill_worker"] for record in server.records()[-number:]]


def pid_of(server: LiveServer, worker_id: str) -> int:
    return int(server.worker(worker_id)["pid"])


def check_that_it_goes_on(server: LiveServer, tokenizer: Tokenizer) -> None:
    """The machines are as good as new: nothing is held on either side, and prompts are read elsewhere again."""
    server.wait_until_up(READER)
    server.wait_until_up("decode-0")
    server.wait_until_idle()

    def is_read_elsewhere() -> bool:
        prompt = make_prompt(1_500, next(SEEDS))
        assert server.complete(prompt).text == expected_text(tokenizer, prompt, 16)
        return readers(server, 1) == [READER]

    eventually(is_read_elsewhere, "prompts are read on the other machine")
    server.wait_until_idle()


def test_prompts_are_read_on_another_machine(server: LiveServer, tokenizer: Tokenizer) -> None:
    prompts = [make_prompt(20 + 111 * seed, seed) for seed in range(12)]
    answers = server.complete_all(prompts)

    assert [answer.text for answer in answers] == [expected_text(tokenizer, prompt, 16) for prompt in prompts]
    assert set(readers(server, len(prompts))) == {READER}
    longer = [*prompts[5], *make_prompt(100, 77)]
    again = server.complete(longer)
    assert again.text == expected_text(tokenizer, longer, 16)
    assert again.num_cached_tokens > 500, "the blocks that came are findable as if they had been computed here"
    reader = server.worker(READER)
    assert reader["cache_sequence"] > 0 and reader["num_dropped_messages"] == 0, "what it has read it tells the router"
    check_that_it_goes_on(server, tokenizer)


KILLS = [(READER, signal.SIGKILL), ("decode-0", signal.SIGKILL), (READER, signal.SIGSTOP), ("decode-0", signal.SIGSTOP)]


@pytest.mark.slow
@pytest.mark.parametrize(("worker_id", "signum"), KILLS)
def test_a_worker_that_ends_or_hangs_while_prompts_are_read(
    server: LiveServer, tokenizer: Tokenizer, worker_id: str, signum: signal.Signals
) -> None:
    prompts = new_prompts()
    with open_streams(server, prompts, 0) as opened:
        time.sleep(0.3)  # some have been read, one is being read, the others wait
        os.kill(pid_of(server, worker_id), signum)
        texts = [stream.read().completion().text for stream in opened]

    assert texts == [expected_text(tokenizer, prompt, 16) for prompt in prompts]
    check_that_it_goes_on(server, tokenizer)


@pytest.mark.slow
def test_a_machine_that_is_cut_off_while_prompts_are_read(server: LiveServer, rack: Host, tokenizer: Tokenizer) -> None:
    prompts = new_prompts()
    with open_streams(server, prompts, 0) as opened:
        time.sleep(0.3)
        rack.cut()
        texts = [stream.read().completion().text for stream in opened]

    assert texts == [expected_text(tokenizer, prompt, 16) for prompt in prompts]
    rack.heal()
    eventually(lambda: node_state(server, "rack1") == "joined", "it joins again")
    check_that_it_goes_on(server, tokenizer)


def test_clients_that_leave_at_any_moment(server: LiveServer, tokenizer: Tokenizer) -> None:
    for number in range(12):
        with server.unanswered(make_prompt(900, 1_000 + number), stream=True):
            time.sleep(0.02 * number)
    check_that_it_goes_on(server, tokenizer)
