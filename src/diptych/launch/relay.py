"""What stands for a router on a machine that has joined: passes on what workers and router say to each other.

Workers here write to its inbox on this machine, and are written to by it, as if the router were here. All moments
are translated at this border (core/moments.py), by an offset that the answers to `NodeAlive` tell.

    OUT --Knock, Terms, Join--> JOINING --Welcome--> IN --nothing heard, SessionOver, a letter lost--> OUT

Where there are several routers, each has a relay, which loses its router and finds it again by itself (relays.py).

Invariants: what comes from a session that is over goes nowhere; when a session begins or ends, all workers are told to
drop what they had from it, before they get anything of the next; a machine out of reach computes for nobody.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto

import zmq

from diptych.core.addresses import inbox_name, split_node_endpoint
from diptych.core.clock import Clock
from diptych.core.clock_offset import ClockOffset
from diptych.core.control import Retire, Revive
from diptych.core.errors import PeerUnreachableError
from diptych.core.ids import RouterId, WorkerId
from diptych.core.messages import (
    FrontendGone,
    Heartbeat,
    Letter,
    Message,
    PeerAddress,
    ToRouter,
    ToWorker,
    WorkerExited,
)
from diptych.core.moments import shifted
from diptych.core.node_messages import (
    NODE_ALIVE_INTERVAL_S,
    FromNode,
    Join,
    Knock,
    Leaving,
    Left,
    NodeAlive,
    NodeLetter,
    NodeWanted,
    RouterAlive,
    SessionOver,
    Terms,
    ToNode,
    TurnedAway,
    Welcome,
    WorkerWanted,
)
from diptych.launch.orders import Orders
from diptych.wire.border import NodeBorder
from diptych.wire.dropped import DroppedMessages
from diptych.wire.frame import FrameDecoder, encode_frame
from diptych.wire.mailbox import Inbox, Outbox
from diptych.wire.wake import Wake

TURN_S = 0.1
log = logging.getLogger(__name__)


class _State(Enum):
    OUT = auto()
    JOINING = auto()
    IN = auto()


@dataclass(frozen=True, slots=True)
class MachineSignals:
    """What a machine's relays raise together."""

    is_leave_wanted: threading.Event = field(default_factory=threading.Event)
    """Set when an operator wants the machine to leave."""
    ended: threading.Event = field(default_factory=threading.Event)
    """Set when it cannot serve any more."""


class Relay:
    """Runs on a thread of its own from `start` to `close`."""

    def __init__(  # noqa: PLR0913, PLR0917  whom it stands between
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        border: NodeBorder,
        orders: Orders,
        router: RouterId,
        terms: Terms,
        offset: ClockOffset,
        clock: Clock,
        signals: MachineSignals,
    ) -> None:
        """Open the inboxes of this machine for `router`. `terms`: of any router. `border` is closed by `close`."""
        self._router = router
        self._signals = signals
        self._border = border
        self._orders = orders
        self._terms = terms
        self._offset = offset
        self._clock = clock
        self._outbox = Outbox(context, orders.inboxes, orders.node)
        self._inbox: Inbox[ToRouter] = Inbox(context, orders.routers[router], ToRouter)
        self._far_inbox: Inbox[Letter] = Inbox(context, orders.border_endpoint(router), Letter)
        self._to_worker: FrameDecoder[ToWorker] = FrameDecoder(ToWorker, DroppedMessages("the border"))
        self._wake = Wake()
        self._state = _State.OUT
        self._session = 0
        self._heard_s = self._turned_s = clock.now_s()
        self._next_word_s = 0.0
        self._lives: dict[WorkerId, int] = {}
        """Of workers, as their heartbeats say: who is to be told that a session is over."""
        self._is_closing = False
        self._leave_until_s: float | None = None
        """When the workers are to have ended, once the machine wants to leave."""
        self._has_told_leaving = False
        """Whether the router of this session has been told."""
        self._last_reason = ""
        self._join: Join | None = None
        self._want: Callable[[Retire | Revive], None] = lambda _: None
        self._greet: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)
        self.is_in = threading.Event()
        """Whether the machine has joined this router."""
        self.failure: str | None = None
        """Why it cannot join any more; set before the signal `ended`."""

    def start(self, join: Join, want: Callable[[Retire | Revive], None], greet: Callable[[], None]) -> None:
        """Begin to join. `want` has a worker ended or started; `greet` has a new router told who does not live."""
        self._join, self._want, self._greet = join, want, greet
        self._thread.start()

    def leave(self, timeout_s: float) -> None:
        """Ask the router to give the workers nothing new, and to have them ended within that time; from any thread."""
        self._leave_until_s = self._clock.now_s() + timeout_s
        self._wake.raise_flag()

    def close(self) -> None:
        """Say that the machine has left, if it has been in; stop. Once more does nothing."""
        if self._is_closing:
            return
        self._is_closing = True
        if self._thread.is_alive():
            self._wake.raise_flag()
            self._thread.join()
        if self._session:
            self._try_send(Left(node=self._orders.node, session=self._session))
        self._border.close()
        self._inbox.close()
        self._far_inbox.close()
        self._outbox.close()
        self._wake.close()

    # The loop

    def _run(self) -> None:
        try:
            while not self._is_closing and self.failure is None:
                self._turn()
        except Exception:
            # A thread's edge: a machine whose letters nobody carries must not look as if it served.
            log.exception("the relay has failed")
            self.failure = "the relay has failed; its log says why"
        if self.failure is not None:
            self._signals.ended.set()

    def _turn(self) -> None:
        poller = zmq.Poller()
        for socket in (self._border.socket, self._inbox.socket, self._far_inbox.socket):
            poller.register(socket, zmq.POLLIN)
        poller.register(self._wake.fileno(), zmq.POLLIN)
        poller.poll(round(TURN_S * 1000))
        self._wake.lower()
        now_s = self._clock.now_s()
        # Where this process itself stood still, the router was not silent.
        self._heard_s += max(now_s - self._turned_s - 2 * TURN_S, 0.0)
        self._turned_s = now_s
        for message in self._border.receive_waiting():
            self._on_message(message)
        for word in self._inbox.receive_waiting():
            self._pass_on(word)
        for letter in self._far_inbox.receive_waiting():
            self._pass_on_far(letter)
        self._on_time(now_s)

    def _on_time(self, now_s: float) -> None:
        if self._state is not _State.OUT and now_s > self._heard_s + self._timeout_s:
            self._go_out(f"nothing has been heard of the router for {now_s - self._heard_s:.1f} s")
        if self._state is _State.IN and self._leave_until_s is not None and not self._has_told_leaving:
            self._has_told_leaving = True
            timeout_s = max(self._leave_until_s - now_s, 0.0)
            self._send(Leaving(node=self._orders.node, session=self._session, timeout_s=timeout_s))
        if now_s < self._next_word_s:
            return
        self._next_word_s = now_s + NODE_ALIVE_INTERVAL_S
        assert self._join is not None
        if self._state is _State.OUT and self._leave_until_s is None:
            join = self._join
            self._try_send(Knock(node=join.node, boot=join.boot, version=join.version, sent_s=self._clock.now_s()))
        elif self._state is _State.IN:
            self._send(
                NodeAlive(
                    node=self._orders.node,
                    session=self._session,
                    sent_s=self._clock.now_s(),
                    round_trip_s=self._offset.round_trip_s,
                    offset_s=self._offset.offset_s,
                )
            )

    @property
    def _timeout_s(self) -> float:
        return float(self._terms.settings["node_timeout_s"] or 0.0)

    # The router's words

    def _on_message(self, message: ToNode) -> None:
        match message:
            case Terms() if self._state is _State.OUT:
                self._on_terms(message)
            case Welcome(session=session) if self._state is _State.JOINING:
                self._on_welcome(session)
            case TurnedAway(reason=reason, is_final=is_final):
                self._on_turned_away(reason, is_final=is_final)
            case SessionOver(session=session) if self._is_current(session):
                self._go_out("the router has given this machine up")
            case RouterAlive(session=session, sent_s=sent_s, now_s=router_s) if self._is_current(session):
                self._heard_s = self._clock.now_s()
                if self._offset.on_answer(sent_s, router_s, self._heard_s):
                    log.warning("the clocks of this machine and the router's have moved: %.6f s", self._offset.offset_s)
            case NodeLetter(session=session, to=to, frame=frame) if self._is_current(session) and to is not None:
                self._deliver(to, frame)
            case WorkerWanted(session=session) if self._is_current(session):
                self._want(_wish_of(message))
            case NodeWanted(session=session) if self._is_current(session):
                self._signals.is_leave_wanted.set()
            case _:
                pass  # an echo of what is over

    def _is_current(self, session: int) -> bool:
        return self._state is _State.IN and session == self._session

    def _on_terms(self, terms: Terms) -> None:
        now_s = self._clock.now_s()
        if (terms.settings, terms.layout) != (self._terms.settings, self._terms.layout):
            self.failure = "the router serves with other settings now: start this machine's workers again"
            return
        self._offset.on_answer(terms.sent_s, terms.now_s, now_s)
        self._terms = terms
        assert self._join is not None
        if self._try_send(self._join):
            self._state, self._heard_s = _State.JOINING, now_s

    def _on_welcome(self, session: int) -> None:
        self._state, self._session, self._heard_s = _State.IN, session, self._clock.now_s()
        self._last_reason = ""
        self._has_told_leaving = False
        self._drop_all()
        self._greet()
        self.is_in.set()
        log.warning("joined the router as %s", self._orders.node)

    def _on_turned_away(self, reason: str, *, is_final: bool) -> None:
        self._state = _State.OUT
        if is_final:
            self.failure = f"the router turns this machine away: {reason}"
        elif reason != self._last_reason:
            log.warning("the router turns this machine away for now: %s", reason)
        self._last_reason = reason

    def _go_out(self, reason: str) -> None:
        """End the session: whoever waited for its letters has been told, or will be, that they do not come."""
        if self._state is _State.IN:
            log.warning("%s; the workers wait until it is back", reason)
            self._drop_all()
        self._state = _State.OUT
        self.is_in.clear()
        self._border.reconnect()

    def _drop_all(self) -> None:
        """Have the workers drop what they have of this router: of this life of its frontend, and of all before it."""
        gone = FrontendGone(router=self._router, incarnation=self._terms.frontend)
        for worker_id, incarnation in self._lives.items():
            endpoint = self._orders.worker_address(worker_id, incarnation).endpoint
            self._write(endpoint, gone)

    # Letters

    def _pass_on(self, message: ToRouter) -> None:
        match message:
            case Heartbeat(address=PeerAddress(worker_id=worker_id, incarnation=incarnation)):
                self._lives[worker_id] = incarnation
            case WorkerExited(worker_id=worker_id, incarnation=incarnation):
                self._outbox.forget(self._orders.worker_address(worker_id, incarnation))
                if self._lives.get(worker_id) == incarnation:
                    del self._lives[worker_id]
            case _:
                pass
        self._carry(None, shifted(message, self._offset.offset_s))

    def _pass_on_far(self, letter: Letter) -> None:
        message = self._to_worker.try_decode(letter.frame)
        if message is not None:
            self._carry(letter.to, shifted(message, self._offset.offset_s))

    def _carry(self, to: str | None, message: Message) -> None:
        if self._state is _State.IN:
            self._send(NodeLetter(session=self._session, to=to, frame=encode_frame(message)))

    def _deliver(self, to: str, frame: bytes) -> None:
        address = split_node_endpoint(to)
        message = self._to_worker.try_decode(frame)
        if message is None or address is None or not self._is_inbox(*address):
            return
        self._write(to, shifted(message, -self._offset.offset_s))

    def _is_inbox(self, node: str, name: str) -> bool:
        """Tell whether one of our workers may have, or have had, an inbox of that name."""
        base, _, number = name.rpartition("-")
        known = {inbox_name(worker_id, 0).rpartition("-")[0] for worker_id in self._orders.roles}
        return node == self._orders.node and base in known and number.isdecimal()

    def _write(self, endpoint: str, message: Message) -> None:
        try:
            self._outbox.send(endpoint, message)
        except PeerUnreachableError as error:
            # It does not read, so the supervisor will end it, and its requests go on elsewhere.
            log.warning("%s was not delivered: %s", type(message).__name__, error)

    def _send(self, message: FromNode) -> None:
        if not self._try_send(message):
            self._go_out("there is no connection to the router")

    def _try_send(self, message: FromNode) -> bool:
        try:
            self._border.send(message)
        except PeerUnreachableError:
            return False
        return True


def _wish_of(wanted: WorkerWanted) -> Retire | Revive:
    if wanted.action == "revive":
        return Revive(worker_id=wanted.worker_id)
    return Retire(worker_id=wanted.worker_id, incarnation=wanted.incarnation, will_return=wanted.action == "replace")
