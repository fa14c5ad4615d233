"""The router's side of a cluster: lets machines join, carries letters to and from their workers, notices who is gone.

For the router it is where letters to workers go (`LetterBox`) and who ends and starts them (`Staff`), whatever machine
they are on. Runs on the event loop of the router; nothing here is locked.

Invariants: a machine's name has one session at most; a letter of a session that is over changes nothing; who is silent
for `timeout_s`, or has missed a letter, is lost, and what its workers had goes on elsewhere.
"""

import asyncio
import contextlib
import logging
from typing import Literal

import msgspec

from diptych.core.addresses import HEAD_NODE, split_node_endpoint
from diptych.core.clock import Clock
from diptych.core.errors import NotFoundError, PeerUnreachableError, UnavailableError
from diptych.core.ids import NodeId, WorkerId
from diptych.core.messages import Letter, Message, PeerAddress, ToRouter
from diptych.core.node_messages import (
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
    Welcome,
    WorkerWanted,
)
from diptych.core.service import NodeInfo
from diptych.router.node_session import NodeSession, find_mismatch, find_refusal
from diptych.router.ports import Border, HearsOfNodes, LocalLetterBox, Staff
from diptych.wire.border import Arrival
from diptych.wire.frame import FrameDecoder, encode_frame
from diptych.wire.mailbox import AsyncInbox

SWEEP_INTERVAL_S = 0.1
KEYS_INTERVAL_S = 1.0
AWAITED_S = 30.0
"""How long requests may wait for a machine that is lost, if no other takes them."""
FORGOTTEN_AFTER_S = 600.0
"""How long a lost machine is shown."""

log = logging.getLogger(__name__)


class NodeOffice:
    """A `LetterBox`, a `Staff` and `Nodes`. The caller owns and closes `border`, `outbox` and `letters`."""

    def __init__(  # noqa: PLR0913, PLR0917  where letters come from and go to
        self,
        border: Border,
        outbox: LocalLetterBox,
        letters: AsyncInbox[Letter],
        local_staff: Staff,
        terms: Terms,
        clock: Clock,
        timeout_s: float,
    ) -> None:
        """`outbox`: to workers of this machine; `letters`: of theirs, to other machines. `timeout_s`: of silence."""
        self._border = border
        self._outbox = outbox
        self._letters = letters
        self._local_staff = local_staff
        self._terms = terms
        self._clock = clock
        self._timeout_s = timeout_s
        self._decoder: FrameDecoder[ToRouter] = FrameDecoder(ToRouter, border.dropped)
        self._sessions: dict[NodeId, NodeSession] = {}
        self._num_sessions = 0
        self._swept_s = self._keys_read_s = clock.now_s()

    async def run(self, router: HearsOfNodes) -> None:
        """Receive and sweep until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._receive_forever(router))
            tasks.create_task(self._pass_on_forever())
            tasks.create_task(self._sweep_forever(router))

    async def _receive_forever(self, router: HearsOfNodes) -> None:
        while True:
            self.on_arrival(await self._border.receive(), router)
            await asyncio.sleep(0)

    async def _pass_on_forever(self) -> None:
        while True:
            letter = await self._letters.receive()
            self._pass_on(letter.to, letter.frame)
            await asyncio.sleep(0)

    async def _sweep_forever(self, router: HearsOfNodes) -> None:
        while True:
            await asyncio.sleep(SWEEP_INTERVAL_S)
            self.sweep(router)

    # Who comes

    def on_arrival(self, arrival: Arrival, router: HearsOfNodes) -> None:
        """Take in a message of a machine."""
        match arrival.message:
            case Knock() as knock:
                self._on_knock(arrival, knock, router)
            case Join() as join:
                self._on_join(arrival, join, router)
            case NodeLetter() as letter:
                session = self._find(arrival, letter.session)
                if session is not None:
                    self._on_letter(session, letter, router)
            case NodeAlive() as alive:
                self._on_alive(arrival, alive)
            case Leaving(session=number, timeout_s=timeout_s):
                session = self._find(arrival, number)
                if session is not None:
                    self._on_leaving(session, timeout_s, router)
            case Left() as left:
                self._on_left(arrival, left, router)

    def _find(self, arrival: Arrival, number: int) -> NodeSession | None:
        """Return the session, which only the connection has that it was opened on; None: it is over."""
        for session in self._sessions.values():
            if session.number == number and session.connection == arrival.connection and session.is_open:
                return session
        return None

    def _on_knock(self, arrival: Arrival, knock: Knock, router: HearsOfNodes) -> None:
        refusal = find_refusal(knock, self._sessions.get(knock.node))
        if refusal is not None:
            self._answer(arrival.connection, refusal)
            return
        known = self._sessions.get(knock.node)
        if known is not None:  # the same agent, which has lost its connection or heard nothing
            self._lose(known, "has lost its connection", router, will_return=True)
        self._answer(
            arrival.connection, msgspec.structs.replace(self._terms, sent_s=knock.sent_s, now_s=self._clock.now_s())
        )

    def _on_join(self, arrival: Arrival, join: Join, router: HearsOfNodes) -> None:
        refusal = find_refusal(join, self._sessions.get(join.node)) or find_mismatch(self._terms.layout, join)
        if refusal is not None:
            log.warning("machine %s at %s is turned away: %s", join.node, arrival.ip, refusal.reason)
            self._answer(arrival.connection, refusal)
            return
        known = self._sessions.get(join.node)
        if known is not None:
            self._lose(known, "starts anew", router, will_return=True)
        self._num_sessions += 1
        now_s = self._clock.now_s()
        session = NodeSession(
            self._num_sessions, arrival.connection, arrival.ip, arrival.key_name, join, joined_s=now_s, heard_s=now_s
        )
        self._sessions[join.node] = session
        log.warning("machine %s at %s has joined with %s", join.node, arrival.ip, ", ".join(sorted(join.workers)))
        router.on_node_joined(join.node, join.workers, join.costs)
        if known is not None:
            router.on_node_left([one for one in known.join.workers if one not in join.workers])
        self._send(session, Welcome(session=session.number))

    def _on_alive(self, arrival: Arrival, alive: NodeAlive) -> None:
        session = self._find(arrival, alive.session)
        if session is None:
            self._answer(arrival.connection, SessionOver(session=alive.session))
            return
        now_s = self._clock.now_s()
        session.heard_s = now_s
        session.round_trip_s, session.clock_offset_s = alive.round_trip_s, alive.offset_s
        self._send(session, RouterAlive(session=session.number, sent_s=alive.sent_s, now_s=now_s))

    def _on_letter(self, session: NodeSession, letter: NodeLetter, router: HearsOfNodes) -> None:
        if letter.to is not None:
            self._pass_on(letter.to, letter.frame)
            return
        message = self._decoder.try_decode(letter.frame)
        if message is None:
            return
        fault = session.inspector.find_fault(message)
        if fault is None:
            router.on_message(message)
        else:
            self._border.dropped.add(f"{type(message).__name__} from {session.join.node}: {fault}")

    def _on_leaving(self, session: NodeSession, timeout_s: float, router: HearsOfNodes) -> None:
        if session.state != "joined":
            return
        session.state = "leaving"
        log.warning("machine %s is leaving", session.join.node)
        for worker_id in session.join.workers:
            with contextlib.suppress(NotFoundError, UnavailableError):  # it is down, or being drained already
                router.drain_worker(worker_id, timeout_s, will_return=False)

    # Who goes

    def _on_left(self, arrival: Arrival, left: Left, router: HearsOfNodes) -> None:
        """Forget a machine that has ended, also if it was given up before: it may have been the end of its connection
        that was noticed first.
        """
        session = self._sessions.get(left.node)
        if session is None or (session.number, session.key_name) != (left.session, arrival.key_name):
            return
        if session.is_open and session.connection != arrival.connection:
            return
        log.warning("machine %s has left", left.node)
        self._lose(session, "has left", router, will_return=False)
        self._forget(session, router)

    def sweep(self, router: HearsOfNodes) -> None:
        """Give up who is silent; called every `SWEEP_INTERVAL_S`."""
        now_s = self._clock.now_s()
        # Where this process itself stood still, nobody else was silent.
        stood_still_s, self._swept_s = max(now_s - self._swept_s - 2 * SWEEP_INTERVAL_S, 0.0), now_s
        for session in list(self._sessions.values()):
            session.heard_s += stood_still_s
            silent_s = now_s - session.heard_s
            if session.is_broken and session.state != "lost":
                self._lose(session, "has not got a letter", router, will_return=True)
            elif session.is_open and silent_s > self._timeout_s:
                self._lose(session, f"has said nothing for {silent_s:.1f} s", router, will_return=True)
            elif session.lost_s is not None and session.is_awaited and now_s > session.lost_s + AWAITED_S:
                session.is_awaited = False
                outlook = f"machine {session.join.node} is out of reach"
                router.on_node_lost(list(session.join.workers), outlook, will_return=False)
            elif session.lost_s is not None and now_s > session.lost_s + FORGOTTEN_AFTER_S:
                self._forget(session, router)
        if now_s > self._keys_read_s + KEYS_INTERVAL_S:
            self._keys_read_s = now_s
            self._border.reread_keys()

    def _lose(self, session: NodeSession, reason: str, router: HearsOfNodes, *, will_return: bool) -> None:
        """End a session, if that has not happened: its requests go on elsewhere, or wait for it to join anew."""
        if session.state == "lost":
            return
        if session.is_open:  # it may hear this, though we do not hear it
            self._answer(session.connection, SessionOver(session=session.number))
        was_leaving, node = session.state == "leaving", session.join.node
        will_return = will_return and not was_leaving
        session.state, session.lost_s, session.is_awaited = "lost", self._clock.now_s(), will_return
        if will_return:
            log.warning("machine %s %s; what it had goes on elsewhere", node, reason)
        router.on_node_lost(list(session.join.workers), f"machine {node} {reason}", will_return=will_return)
        if was_leaving:  # it wanted to go, and is gone
            self._forget(session, router)

    def _forget(self, session: NodeSession, router: HearsOfNodes) -> None:
        """Drop a session that is lost, and its workers, unless that has happened or another one has them by now."""
        if self._sessions.get(session.join.node) is session:
            del self._sessions[session.join.node]
            router.on_node_left(list(session.join.workers))

    # Letters

    def send(self, endpoint: str, message: Message) -> None:
        """Queue a message for a worker, wherever it is. Raises: PeerUnreachableError if it was not queued."""
        node = _node_of(endpoint)
        if node in {None, HEAD_NODE}:
            self._outbox.send(endpoint, message)
        else:
            self._send_far(endpoint, encode_frame(message))

    def _send_far(self, endpoint: str, frame: bytes) -> None:
        session = self._sessions.get(_node_of(endpoint) or NodeId(""))
        if session is None or not session.is_open:
            raise PeerUnreachableError(f"{endpoint} is on a machine that is not in")
        try:
            self._border.send(session.connection, NodeLetter(session=session.number, to=endpoint, frame=frame))
        except PeerUnreachableError:
            session.is_broken = True
            raise

    def _pass_on(self, endpoint: str, frame: bytes) -> None:
        """Pass on a letter between workers of two machines; nobody opens it here."""
        try:
            if _node_of(endpoint) == HEAD_NODE:
                self._outbox.send_frame(endpoint, frame)
            else:
                self._send_far(endpoint, frame)
        except PeerUnreachableError as error:
            self._border.dropped.add(f"a letter could not be passed on: {error}")

    def forget(self, peer: PeerAddress) -> None:
        """Drop what is queued for a peer of this machine that is gone."""
        self._outbox.forget(peer)

    def _send(self, session: NodeSession, message: ToNode) -> None:
        try:
            self._border.send(session.connection, message)
        except PeerUnreachableError:
            session.is_broken = True

    def _answer(self, connection: bytes, message: ToNode) -> None:
        with contextlib.suppress(PeerUnreachableError):  # it will ask again
            self._border.send(connection, message)

    # Staff

    def retire(self, address: PeerAddress, will_return: bool) -> None:
        """End a worker that has nothing to do any more, for good or to start a new one in its place."""
        if address.node in {"", HEAD_NODE}:
            self._local_staff.retire(address, will_return)
        else:
            self._want(address.worker_id, "replace" if will_return else "retire", address.incarnation)

    def revive(self, worker_id: WorkerId) -> None:
        """Start a worker that is down."""
        if self._session_of(worker_id) is None:
            self._local_staff.revive(worker_id)
        else:
            self._want(worker_id, "revive", 0)

    def _want(self, worker_id: WorkerId, action: Literal["retire", "replace", "revive"], incarnation: int) -> None:
        session = self._session_of(worker_id)
        if session is not None and session.is_open:
            wanted = WorkerWanted(session=session.number, worker_id=worker_id, action=action, incarnation=incarnation)
            self._send(session, wanted)

    def _session_of(self, worker_id: WorkerId) -> NodeSession | None:
        return next((one for one in self._sessions.values() if worker_id in one.join.workers), None)

    # Nodes

    def infos(self) -> dict[NodeId, NodeInfo]:
        """Describe every machine that has joined."""
        now_s = self._clock.now_s()
        return {node: session.info(now_s) for node, session in sorted(self._sessions.items())}

    def drain(self, node: NodeId) -> None:
        """Have a machine leave in order. Raises: NotFoundError, UnavailableError."""
        session = self._sessions.get(node)
        if session is None:
            raise NotFoundError(f"there is no machine {node}; `diptych cluster status` lists them")
        if not session.is_open:
            raise UnavailableError(f"machine {node} is out of reach")
        self._send(session, NodeWanted(session=session.number))


def _node_of(endpoint: str) -> NodeId | None:
    address = split_node_endpoint(endpoint)
    return None if address is None else address[0]
