"""A process in which a library moves KV, so that its end, which can be had at any time, is the end of all that moves.

    worker  --Begin-->          carrier   maps the worker's memory, loads the library, registers the blocks
            <--Opened, Unfit--
            --Meet, Read-->               several at a time
            <--Met, Ended--               nothing moves any more
            <--Lost--                     nobody knows whether something moves: it ends itself
            --Part, Serve-->

The libraries cannot be told to stop: what they have begun they write when it comes, minutes later if the peer stands
still. And they have died in use. So neither is left to a worker: whoever waits for too long kills the carrier and reaps
it, and knows then that nothing will be written (docs/adr/0037).

Invariants: one thread has to do with the library; a carrier ends with its worker, even in the midst of a call into the
library; nothing of the library is torn down, since the end of the process does that.
"""

import ctypes
import importlib
import itertools
import logging
import os
import select
import socket
import sys
import threading
from typing import Any, NamedTuple

import msgspec

from diptych.core.errors import TransferError
from diptych.transfer.carrier_orders import (
    MAX_PACKET_BYTES,
    AnyAnswer,
    AnyOrder,
    Begin,
    Ended,
    Lost,
    Meet,
    Met,
    Opened,
    Part,
    Place,
    Read,
    Serve,
    Unfit,
)
from diptych.transfer.library import Library, LostReadError, Span
from diptych.transfer.segment import Segment

READ_POLL_S = 0.0001
SERVE_POLL_S = 0.0005
log = logging.getLogger(__name__)
_decoder: "msgspec.msgpack.Decoder[AnyOrder]" = msgspec.msgpack.Decoder(AnyOrder)
_place_decoder = msgspec.msgpack.Decoder(Place)


class _Peer(NamedTuple):
    handle: Any
    """What the library calls it."""
    address: int
    """Of its first block, in its process."""


class CarrierLoop:
    """Carries out a worker's orders, from `Opened` on."""

    def __init__(self, connection: socket.socket, library: Library, address: int) -> None:
        """`address`: of the first block here."""
        self._connection = connection
        self._library = library
        self._address = address
        self._numbers = itertools.count()
        self._peers: dict[int, _Peer] = {}
        self._reads: dict[int, Any] = {}
        """Under way, by call."""
        self._num_served = 0

    def run(self) -> None:
        """Work until the worker hangs up. Raises: LostReadError."""
        while True:
            ready, _, _ = select.select([self._connection], [], [], self._patience_s())
            if ready:
                packet = self._connection.recv(MAX_PACKET_BYTES)
                if not packet:
                    return
                self._on_order(_decoder.decode(packet))
            self._look_after_reads()
            if self._num_served:
                self._library.serve()

    def _patience_s(self) -> float | None:
        if self._reads:
            return READ_POLL_S
        return SERVE_POLL_S if self._num_served else None

    def _on_order(self, order: AnyOrder) -> None:
        match order:
            case Meet(call=call, description=description):
                try:
                    self._send(Met(call=call, peer=self._meet(description)))
                except TransferError as error:
                    self._send(Ended(call=call, error=str(error)))
            case Read(call=call):
                try:
                    self._reads[call] = self._begin(order)
                except TransferError as error:
                    self._send(Ended(call=call, error=str(error)))
            case Part(peer=number):
                self._library.part(self._peers.pop(number).handle)
            case Serve(is_wanted=is_wanted) if self._library.must_be_served:
                self._num_served += 1 if is_wanted else -1
            case _:
                pass

    def _meet(self, description: bytes) -> int:
        try:
            place = _place_decoder.decode(description)
        except msgspec.MsgspecError as error:
            raise TransferError(f"the peer has described itself as nothing that is known: {error}") from None
        number = next(self._numbers)
        self._peers[number] = _Peer(self._library.meet(place.library), place.address)
        return number

    def _begin(self, order: Read) -> Any:
        peer = self._peers[order.peer]
        here, there = self._address, peer.address
        spans = [Span(here + run.target, there + run.source, run.num_bytes) for run in order.runs]
        return self._library.begin(peer.handle, spans)

    def _look_after_reads(self) -> None:
        for call, read in list(self._reads.items()):
            try:
                if not self._library.has_ended(read):
                    continue
                answer = Ended(call=call)
            except TransferError as error:
                answer = Ended(call=call, error=str(error))
            del self._reads[call]
            self._send(answer)

    def _send(self, answer: AnyAnswer) -> None:
        send(self._connection, answer)


def send(connection: socket.socket, answer: AnyAnswer) -> None:
    """Tell the worker; one that is gone is noticed elsewhere."""
    try:
        connection.send(msgspec.msgpack.encode(answer))
    except OSError as error:
        log.debug("the worker hears nothing: %s", error)


def _end_with_worker(connection: socket.socket) -> None:
    """End this process when the worker has hung up, though the library may not have returned from a call."""
    poller = select.poll()
    poller.register(connection, 0)  # a hang-up is told in any case
    poller.poll()
    os._exit(0)


def _load(name: str) -> Any:
    module, _, kind = name.partition(":")
    return getattr(importlib.import_module(module), kind)


def main() -> int:
    """Run a carrier: `python -m diptych.transfer.carrier_process SOCKET FILE`, both of them descriptors."""
    connection, segment = socket.socket(fileno=int(sys.argv[1])), Segment(int(sys.argv[2]))
    threading.Thread(target=_end_with_worker, args=(connection,), daemon=True).start()
    packet = connection.recv(MAX_PACKET_BYTES)
    if not packet:
        return 0
    begin = _decoder.decode(packet)
    assert isinstance(begin, Begin)
    segment.populate()
    blocks = segment.view(begin.offset, begin.num_bytes)
    address = ctypes.addressof(ctypes.c_char.from_buffer(blocks))
    try:
        library = _load(begin.library)(begin.host, f"{begin.name}/{os.getpid()}", address, begin.num_bytes)
    except TransferError as error:
        send(connection, Unfit(reason=str(error)))
        return 1
    description = msgspec.msgpack.encode(Place(address, library.describe()))
    send(connection, Opened(description=description))
    try:
        CarrierLoop(connection, library, address).run()
    except LostReadError as error:
        send(connection, Lost(reason=str(error)))
        return 1
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    status = 1
    try:
        status = main()
    except Exception:  # a process's edge: its worker sees that it has ended
        log.exception("a carrier of KV has failed")
    sys.stderr.flush()
    os._exit(status)
