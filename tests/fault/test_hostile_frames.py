"""Strangers write anything to every socket of a live server while honest clients ask: all answers are right."""

import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from random import Random

import pytest
import zmq
from tests.hostile_frames import HostileMessages, Known
from tests.live_server import PATIENCE_S, LiveServer, StartServer, eventually
from tests.modeled_answers import expected_text, make_prompt

from diptych.core.messages import ToRouter, ToWorker
from diptych.frontend.text.tokenizer import Tokenizer
from diptych.wire.frame import HEADER
from diptych.wire.mailbox import MAX_MESSAGE_BYTES

NUM_FRAMES = 2000
"""To each inbox."""
NUM_HALF_OPEN = 200
MOST_GROWTH_BYTES = 200 * 10**6


def sockets_of(server: LiveServer) -> dict[str, str]:
    """Return the paths of all inboxes, by name."""
    workers = server.status()["workers"]
    paths = {name: info["address"]["endpoint"].removeprefix("ipc://") for name, info in workers.items()}
    folder = Path(next(iter(paths.values()))).parent
    return paths | {"router": str(folder / "router")}


def known_to_strangers(server: LiveServer) -> Known:
    """Enough to get far, and no more: what makes sense is believed."""
    addresses = [info["address"] for info in server.status()["workers"].values()]
    now_s = time.monotonic()
    return {
        "request_id": ["stranger", "another"],
        "worker_id": ["stranger", "prefill-9", "../decode-0-2"],
        "decode": addresses,
        "prefill": [*addresses, None],
        "epoch": [0, 1, 5, 2**62],
        "attempt": [0, 1],
        "prompt_token_ids": [[300, 301, 302], [300] * 100, [49151], [49152]],
        "max_tokens": [1, 5],
        "num_choices": [1, 2],
        "arrived_s": [now_s, now_s + 1e6],
        "deadline_s": [now_s + 20.0, now_s],
        "grammar": [None, "{}", "start: /[/"],
    }


def flood(server: LiveServer, name: str, path: str, seed: int) -> None:
    """Send an inbox all sorts of frames."""
    draw = Random(seed)
    hostile = HostileMessages(ToRouter if name == "router" else ToWorker, draw, known_to_strangers(server))
    with zmq.Context() as context, context.socket(zmq.PUSH) as push, context.socket(zmq.PUSH) as oversized:
        for one in (push, oversized):
            one.setsockopt(zmq.LINGER, 5000)
            one.connect(f"ipc://{path}")
        for number in range(NUM_FRAMES):
            frames = [hostile.frame() for _ in range(3 if number % 50 == 0 else 1)]
            push.send_multipart(frames)
        oversized.setsockopt(zmq.LINGER, 0)
        oversized.send(HEADER + bytes(MAX_MESSAGE_BYTES))
        time.sleep(0.2)


def pester(path: str, draw: Random) -> list[socket.socket]:
    """Connect without saying anything, or saying what no ZeroMQ says; return what is left open."""
    left_open = []
    for number in range(NUM_HALF_OPEN):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(path)
        if number % 2:
            connection.sendall(draw.randbytes(draw.choice([1, 10, 64, 5000])))
        if number % 4 < 2:
            left_open.append(connection)
        else:
            connection.close()
    return left_open


def memory_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.parametrize("is_adaptive", [False, True])
def test_among_honest_clients(modeled_server: StartServer, tokenizer: Tokenizer, is_adaptive: bool) -> None:
    server = modeled_server(adaptive=is_adaptive, max_num_seqs=16)
    paths = sockets_of(server)
    pids = {name: server.worker(name)["pid"] for name in paths if name != "router"}
    server.complete(make_prompt(100, 0))
    memory_before = {pid: memory_bytes(pid) for pid in pids.values()}
    prompts = [make_prompt(50 + 7 * number, number) for number in range(24)]
    draw = Random(7)
    with ThreadPoolExecutor(len(paths) + 1) as pool:
        left_open = [connection for path in paths.values() for connection in pester(path, draw)]
        floods = [pool.submit(flood, server, name, path, seed) for seed, (name, path) in enumerate(paths.items())]
        for batch in (prompts[:8], prompts[8:16], prompts[16:]):
            texts = [answer.text for answer in server.complete_all(batch, max_tokens=40)]
            assert texts == [expected_text(tokenizer, prompt, 40) for prompt in batch]
        for one in floods:
            one.result(PATIENCE_S)
    for connection in left_open:
        connection.close()

    eventually(lambda: server.status()["num_dropped_messages"] > NUM_FRAMES / 4, "the router's count")
    for name, pid in pids.items():
        eventually(lambda name=name: server.worker(name)["num_dropped_messages"] > NUM_FRAMES / 4, "a count")  # type: ignore[misc]
        assert (server.worker(name)["state"], server.worker(name)["pid"]) == ("ready", pid)
        assert memory_bytes(pid) < memory_before[pid] + MOST_GROWTH_BYTES
    server.wait_until_idle()
    prompt = make_prompt(100, 99)
    assert server.complete(prompt).text == expected_text(tokenizer, prompt, 16)


def test_half_a_message_keeps_nobody_waiting(modeled_server: StartServer, tokenizer: Tokenizer) -> None:
    server = modeled_server()
    paths = sockets_of(server)
    greeting = bytes.fromhex("ff00000000000000017f03") + b"NULL".ljust(53, b"\0")  # ZMTP's, and then nothing
    with closing(socket.socket(socket.AF_UNIX)) as one, closing(socket.socket(socket.AF_UNIX)) as other:
        for connection, name in ((one, "router"), (other, "decode-0")):
            connection.connect(paths[name])
            connection.sendall(greeting)
        prompt = make_prompt(64, 5)
        assert server.complete(prompt).text == expected_text(tokenizer, prompt, 16)
