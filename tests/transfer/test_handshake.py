"""Who may send: workers of the same cluster that compute the same. Others are told why not, or nothing at all."""

import contextlib
import socket
import threading
from typing import Any

import pytest
from tests.transfer.machines import IN_PARTS, WHOLE, Machine, facts_of, outcome

from diptych.core.errors import TransferError
from diptych.core.ids import BlockId
from diptych.transfer.frames import Challenge, Hello, Welcome
from diptych.transfer.handshake import TRANSFER_PROTOCOL, find_difference
from diptych.transfer.memory import BlockPair
from diptych.transfer.tcp import Connection


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"protocol": 1}, f"version of the transfer protocol differs: {TRANSFER_PROTOCOL} here, 1 there"),
        ({"diptych": "1.2.4"}, "version of Diptych differs: 1.2.3 here, 1.2.4 there"),
        ({"model_key": "another"}, "the model differs: a model here, another there"),
        ({"engine": "openvino f32 KV"}, "KV precision differs: openvino bf16 KV here, openvino f32 KV there"),
        ({"layout": "0123"}, "the KV layout differs"),
        ({"block_size": 16}, "the tokens a block differs: 32 here, 16 there"),
        ({"block_bytes": 17}, "the bytes a block differs"),
    ],
)
def test_what_differs_is_named_to_the_sender(changes: dict[str, Any], words: str) -> None:
    with Machine("owner") as receiver, Machine("sender", facts=changes) as sender:
        receiver.grant(1, sender, [1])
        error = outcome(sender.push(receiver, 1, [(1, 1)]))
        assert error is not None
        assert words in error
        assert "owner and sender cannot share KV" in error


def test_equal_workers_do_not_differ() -> None:
    assert find_difference(facts_of(WHOLE, {}), facts_of(WHOLE, {})) is None
    difference = find_difference(facts_of(WHOLE, {}), facts_of(IN_PARTS, {}))
    assert difference is not None and difference.startswith("the bytes a block differs")


def test_another_clusters_worker_is_refused() -> None:
    with Machine("owner") as receiver, Machine("sender", secret=bytes(32)) as sender:
        receiver.grant(1, sender, [1])
        error = outcome(sender.push(receiver, 1, [(1, 1)]))
        assert error is not None and "secret of the cluster differs" in error


class Pretender:
    """Answers every hello with a welcome, and listens to what is said then."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(10)
        self.heard: list[object] = []
        self.thread = threading.Thread(target=self.answer)
        self.thread.start()

    def answer(self) -> None:
        connection = Connection(self.listener.accept()[0])
        connection.send(Challenge(nonce=bytes(32)))
        self.heard.append(connection.receive())
        connection.send(Welcome(transport="tcp", proof=bytes(32)))
        try:
            self.heard.append(connection.receive())
        except TransferError as error:
            self.heard.append(error)
        connection.close()


def test_a_receiver_that_does_not_know_the_secret_gets_nothing() -> None:
    pretender = Pretender()
    with Machine("sender") as sender, pretender.listener:
        link = sender.exchange.link(f"127.0.0.1:{pretender.listener.getsockname()[1]}")
        error = outcome(link.push(1, [BlockPair(BlockId(1), BlockId(1))]))
        pretender.thread.join()

    assert error is not None and "does not know this cluster's secret" in error
    assert isinstance(pretender.heard[0], Hello)
    assert isinstance(pretender.heard[1], TransferError), "nothing was pushed there"


@pytest.mark.parametrize(
    "noise", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\xff\xff\xff\xff", b"\0\0\0\3abc", b"\0\0\0\1\xc0", bytes(10_000)]
)
def test_strangers_get_a_challenge_and_nothing_else(noise: bytes) -> None:
    with Machine("owner") as receiver, Machine("sender") as sender:
        host, _, port = receiver.exchange.receiver.endpoint.rpartition(":")
        with socket.create_connection((host, int(port)), 10) as stranger:
            stranger.sendall(noise)
            with contextlib.suppress(OSError):  # it has hung up already
                stranger.shutdown(socket.SHUT_WR)
            received = b""
            while chunk := _receive(stranger):
                received += chunk
        assert b"Challenge" in received and len(received) < 200
        receiver.grant(1, sender, [1])
        assert outcome(sender.push(receiver, 1, [(1, 1)])) is None, "others are served as before"


def _receive(stranger: socket.socket) -> bytes:
    try:
        return stranger.recv(4096)
    except ConnectionResetError:
        return b""
