"""Two frontends share the workers: a client may use either, and the death of one is nothing to the other's."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.live_process import Command
from tests.live_server import LiveServer, eventually
from tests.modeled_answers import expected_text, make_prompt

from diptych.frontend.text.tokenizer import Tokenizer
from diptych.policy.restarting import LOOP_DEATHS

MODELED = ("--engine", "modeled", "--kv-bytes", "2MB", "--modeled-time-scale", "0.5", "--no-adaptive")
SERVE = ("serve", *MODELED, "--decode", "2", "--port", "0", "--frontends", "2")
PREFIX_TOKENS = 320


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    command = Command(tmp_path_factory.mktemp("frontends"), SERVE, {}, ())
    yield command
    command.signal(signal.SIGTERM)
    try:
        assert command.wait_for_exit() == 0
        command.wait_until_gone()
        assert "Traceback" not in command.stderr
    finally:
        command.close()


@pytest.fixture(scope="module")
def servers(command: Command) -> list[LiveServer]:
    return command.wait_for_servers()


@pytest.fixture
def one(servers: list[LiveServer]) -> Iterator[LiveServer]:
    """The first frontend; both are idle before and after."""
    yield servers[0]
    for server in servers:
        server.wait_until_idle()
        eventually(lambda server=server: not any(assigned(server).values()), "empty ledgers")  # type: ignore[misc]


@pytest.fixture
def other(servers: list[LiveServer]) -> LiveServer:
    return servers[1]


def frontend_pid(command: Command, number: int) -> int:
    [pid] = [pid for pid, line in command.processes().items() if f"--name frontend-{number} " in line]
    return pid


def assigned(server: LiveServer) -> dict[str, int]:
    """Return how many requests each worker has by a router's account, which includes the other's."""
    return {worker: info["num_assigned"] for worker, info in server.status()["workers"].items()}


def owner_of_last(server: LiveServer) -> str:
    return str(server.records()[-1]["decode_worker"])


def is_ready(server: LiveServer) -> bool:
    try:
        return server.http.get("/ready").status_code == 200
    except httpx.TransportError:
        return False


def test_both_serve_on_ports_of_their_own(one: LiveServer, other: LiveServer, tokenizer: Tokenizer) -> None:
    assert one.url != other.url
    prompts = [make_prompt(30 + 11 * seed, seed) for seed in range(6)]
    for server in (one, other):
        texts = [answer.text for answer in server.complete_all(prompts)]
        assert texts == [expected_text(tokenizer, prompt, 16) for prompt in prompts]
    assert len(one.records()) == len(other.records()) == 6, "each keeps the records of its own requests"


def test_a_prefix_that_came_through_one_is_found_through_the_other(one: LiveServer, other: LiveServer) -> None:
    prefix = make_prompt(PREFIX_TOKENS, 20)
    with one.stream(make_prompt(40, 21), max_tokens=4000) as running:
        running.read(2)
        one.complete(prefix)
        assert owner_of_last(one) == "decode-1", "the first owner was writing"
    one.wait_until_idle()
    answer = other.complete([*prefix, *make_prompt(50, 22)])
    assert owner_of_last(other) == "decode-1", "a router that knows nothing takes the first of equals"
    assert answer.num_cached_tokens == PREFIX_TOKENS


def test_what_one_has_just_placed_the_other_leaves_alone(one: LiveServer, other: LiveServer) -> None:
    for seed in range(2):  # each far shorter than from one heartbeat to the next
        prompts = [make_prompt(40, 100 * seed + number) for number in range(2)]
        with one.stream(prompts[0], max_tokens=60) as first, other.stream(prompts[1], max_tokens=60) as second:
            assert other.status()["num_elsewhere"] == 1
            first.read().completion()
            second.read().completion()
        assert {owner_of_last(one), owner_of_last(other)} == {"decode-0", "decode-1"}


def test_a_drain_through_one_spares_the_answers_of_the_other(
    one: LiveServer, other: LiveServer, tokenizer: Tokenizer
) -> None:
    prompt = make_prompt(60, 40)
    with one.stream(prompt, max_tokens=100) as stream:
        stream.read(2)
        [owner] = [worker for worker, count in assigned(other).items() if count and worker.startswith("decode")]
        before = other.incarnation(owner)
        order = {"timeout_s": 30, "will_return": True}
        assert other.http.post(f"/diptych/workers/{owner}/drain", json=order).status_code == 200
        eventually(lambda: one.worker(owner)["state"] == "draining", "word of the drain")
        short = one.complete(make_prompt(30, 41), max_tokens=4)
        assert owner_of_last(one) != owner and short.num_output_tokens == 4
        assert stream.read().completion().text == expected_text(tokenizer, prompt, 100)
    assert one.records()[-1]["num_migrations"] == 0
    for server in (one, other):
        eventually(lambda server=server: server.incarnation(owner) > before, "its successor")  # type: ignore[misc]
        server.wait_until_up(owner)


@pytest.mark.parametrize("number", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_one_that_is_killed_takes_its_own_requests_along_and_no_others(
    command: Command, one: LiveServer, servers: list[LiveServer], tokenizer: Tokenizer, number: int
) -> None:
    del one  # both are to be idle at the end
    dying, living = servers[number], servers[1 - number]
    prompts = [make_prompt(50, 60 + number), make_prompt(50, 70 + number)]
    with dying.stream(prompts[0], max_tokens=4000) as cut, living.stream(prompts[1], max_tokens=150) as whole:
        cut.read(2)
        whole.read(2)
        os.kill(frontend_pid(command, number), signal.SIGKILL)
        with pytest.raises(httpx.TransportError):
            cut.read()
        assert living.complete(prompts[1][:20]).text == expected_text(tokenizer, prompts[1][:20], 16)
        assert whole.read().completion().text == expected_text(tokenizer, prompts[1], 150)
    eventually(lambda: is_ready(dying), "another frontend in its place")
    eventually(lambda: living.status()["num_elsewhere"] == 0, "word that nothing is left there")
    prompt = make_prompt(40, 80 + number)
    assert dying.complete(prompt).text == expected_text(tokenizer, prompt, 16)
    assert len(living.records()) > 1, "the other is the same process as before"


@pytest.mark.slow
def test_one_that_dies_again_and_again_does_not_end_the_server(tmp_path: Path) -> None:
    command = Command(tmp_path, SERVE, {}, ())
    try:
        one, other = command.wait_for_servers()
        for _ in range(LOOP_DEATHS):
            eventually(lambda: is_ready(other), "another frontend")
            os.kill(frontend_pid(command, 1), signal.SIGKILL)
            eventually(lambda: not is_ready(other), "its end")
        assert one.complete("Hello").num_output_tokens == 16
        eventually(lambda: f"it has died {LOOP_DEATHS} times of late" in command.stderr, "a word in the log")
        assert command.process.poll() is None
        command.signal(signal.SIGTERM)
        assert command.wait_for_exit() == 0
    finally:
        command.close()
