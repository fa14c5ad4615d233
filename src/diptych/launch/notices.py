"""What the supervisor tells of lives that are over: to the workers that had to do with them, and to the routers.

See: supervisor.py for when.
"""

import logging
from collections.abc import Collection

import zmq

from diptych.core.errors import PeerUnreachableError
from diptych.core.ids import RouterId
from diptych.core.messages import FrontendGone, Message, PeerGone, WorkerExited
from diptych.launch.orders import Orders
from diptych.launch.seat import Seat
from diptych.wire.mailbox import Outbox

log = logging.getLogger(__name__)


class Notices:
    """Sends them, without waiting for anyone. Owned by the supervisor's thread."""

    def __init__(self, orders: Orders, workers: Collection[Seat]) -> None:
        """`workers`: all seats of workers, as the supervisor keeps them."""
        self._orders = orders
        self._workers = workers
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._outbox = Outbox(self._context, orders.inboxes, orders.node)

    def close(self) -> None:
        """Send no more; what has not left by now does not."""
        self._outbox.close()
        self._context.destroy(linger=0)

    def tell_of_peer(self, seat: Seat) -> None:
        """Tell the workers that one of them, which had blocks, is gone."""
        assert seat.worker_id is not None
        address = self._orders.worker_address(seat.worker_id, seat.incarnation)
        self._outbox.forget(address)
        self._tell_workers(PeerGone(worker_id=seat.worker_id, incarnation=seat.incarnation, endpoint=address.endpoint))

    def tell_of_frontend(self, seat: Seat) -> None:
        """Tell the workers and the other routers that a frontend is gone."""
        gone = FrontendGone(router=seat.router, incarnation=seat.incarnation)
        self._tell_workers(gone)
        for router, endpoint in self._orders.routers.items():
            if router != seat.router:
                self._send(endpoint, gone)

    def tell_routers(self, seat: Seat, status: int, outlook: str, *, will_return: bool) -> None:
        """Tell all routers that a worker has ended, and whether requests may wait for its next life."""
        for endpoint in self._orders.routers.values():
            self._tell_router(endpoint, seat, status, outlook, will_return=will_return)

    def tell_of_absent(self, router: RouterId) -> None:
        """Tell a router that knows nobody yet who does not live; who lives greets it."""
        for seat in self._workers:
            if not seat.has_blocks:
                will_return = seat.child is not None or seat.due_s is not None
                self._tell_router(self._orders.routers[router], seat, 0, "", will_return=will_return)

    def _tell_router(self, endpoint: str, seat: Seat, status: int, outlook: str, *, will_return: bool) -> None:
        assert seat.worker_id is not None
        message = WorkerExited(
            worker_id=seat.worker_id,
            incarnation=seat.last_ended,
            exit_status=status,
            will_return=will_return,
            outlook=outlook,
        )
        self._send(endpoint, message)

    def _tell_workers(self, message: Message) -> None:
        for seat in self._workers:
            if seat.worker_id is not None and seat.has_blocks:
                self._send(self._orders.worker_address(seat.worker_id, seat.incarnation).endpoint, message)

    def _send(self, endpoint: str, message: Message) -> None:
        try:
            self._outbox.send(endpoint, message)
        except PeerUnreachableError as error:
            log.warning("%s was not told: %s", type(message).__name__, error)
