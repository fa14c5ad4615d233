"""Machines that join the router: their sessions, their letters, their ends."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
import zmq
import zmq.asyncio
from tests.router.conftest import Cluster, ListOutbox, worker_status

from diptych.core.clock import VirtualClock
from diptych.core.errors import NotFoundError, PeerUnreachableError, UnavailableError
from diptych.core.ids import NodeId, WorkerId
from diptych.core.messages import Heartbeat, Letter, Message, PeerAddress, PeerGone, Role, WorkerExited, WorkerState
from diptych.core.node_messages import (
    FromNode,
    Join,
    Knock,
    Layout,
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
from diptych.core.version import __version__
from diptych.router.nodes import AWAITED_S, FORGOTTEN_AFTER_S, NodeOffice
from diptych.wire.border import Arrival
from diptych.wire.dropped import DroppedMessages
from diptych.wire.frame import encode_frame
from diptych.wire.mailbox import AsyncInbox

TIMEOUT_S = 5.0
LAYOUT = Layout(model_key="weights", fingerprint="f32", engine="scripted f32", block_size=4, max_model_len=64)
RACK = NodeId("rack1")


class ListBorder:
    """Keeps what is sent to each connection."""

    def __init__(self) -> None:
        self.dropped = DroppedMessages("border")
        self.sent: list[tuple[bytes, ToNode]] = []
        self.cut: set[bytes] = set()

    def reread_keys(self) -> None:
        pass

    async def receive(self) -> Arrival:
        raise NotImplementedError

    def send(self, connection: bytes, message: ToNode) -> None:
        if connection in self.cut:
            raise PeerUnreachableError("cut")
        self.sent.append((connection, message))


class LocalOutbox(ListOutbox):
    def __init__(self) -> None:
        super().__init__()
        self.frames: list[tuple[str, bytes]] = []

    def send_frame(self, endpoint: str, frame: bytes) -> None:
        self.frames.append((endpoint, frame))


class Staff:
    def __init__(self) -> None:
        self.retired: list[PeerAddress] = []
        self.revived: list[WorkerId] = []

    def retire(self, address: PeerAddress, will_return: bool) -> None:
        self.retired.append(address)

    def revive(self, worker_id: WorkerId) -> None:
        self.revived.append(worker_id)


def make_terms(sent_s: float, now_s: float) -> Terms:
    return Terms(settings={}, layout=LAYOUT, transfer_secret="", sent_s=sent_s, now_s=now_s, frontend=7)


class Office:
    """A router with no workers of its own, and words to put into the mouths of machines."""

    def __init__(self, folder: Path) -> None:
        clock = VirtualClock(1000.0)
        self.border, self.outbox, self.staff = ListBorder(), LocalOutbox(), Staff()
        self._context = zmq.asyncio.Context()
        self._letters: AsyncInbox[Letter] = AsyncInbox(self._context, f"ipc://{folder}/border", Letter)
        terms = make_terms(sent_s=0.0, now_s=0.0)
        self.office = NodeOffice(self.border, self.outbox, self._letters, self.staff, terms, clock, TIMEOUT_S)
        self.cluster = Cluster(clock=clock, letters=self.office)
        self.router = self.cluster.router

    def close(self) -> None:
        self._letters.close()
        self._context.term()

    def says(self, message: FromNode, connection: bytes = b"a") -> list[ToNode]:
        """Return what a machine is answered."""
        num_before = len(self.border.sent)
        self.office.on_arrival(Arrival(connection, "node", "10.0.0.2", message), self.router)
        return [answer for to, answer in self.border.sent[num_before:] if to == connection]

    def join(self, name: str = "rack1", *, connection: bytes = b"a", boot: str = "one") -> int:
        """Return the session."""
        *_, welcome = self.says(join_of(name, boot), connection)
        assert isinstance(welcome, Welcome), welcome
        return welcome.session

    def letter(self, session: int, message: Message, connection: bytes = b"a") -> None:
        self.says(NodeLetter(session=session, to=None, frame=encode_frame(message)), connection)

    def greet(self, session: int, name: str = "rack1", incarnation: int = 1, connection: bytes = b"a") -> None:
        self.letter(session, heartbeat(name, incarnation), connection)

    def workers(self) -> dict[str, str]:
        return {str(one): info.status.state.value for one, info in self.router.status().workers.items()}

    def advance(self, duration_s: float) -> None:
        while duration_s > 0:
            self.cluster.clock.sleep(min(duration_s, 0.1))
            self.office.sweep(self.router)
            duration_s -= 0.1


def join_of(name: str, boot: str = "one", layout: Layout = LAYOUT, version: str = __version__) -> Join:
    return Join(
        node=NodeId(name),
        boot=boot,
        version=version,
        layout=layout,
        workers={WorkerId(f"{name}.mixed-0"): Role.MIXED},
        costs={},
        num_cores=2,
        segment_bytes=10**9,
    )


def heartbeat(name: str, incarnation: int = 1) -> Heartbeat:
    worker_id = WorkerId(f"{name}.mixed-0")
    address = PeerAddress(worker_id, f"node://{name}/mixed-0-{incarnation}", incarnation, NodeId(name))
    return Heartbeat(role=Role.MIXED, address=address, status=worker_status(WorkerState.READY))


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    made = Office(tmp_path)
    yield made
    made.close()


def test_a_machine_asks_joins_and_serves(office: Office) -> None:
    [terms] = office.says(Knock(node=RACK, boot="one", version=__version__, sent_s=3.5))
    assert terms == make_terms(sent_s=3.5, now_s=office.cluster.clock.now_s())
    session = office.join()
    assert office.workers() == {"rack1.mixed-0": "starting"}
    office.greet(session)
    assert office.workers() == {"rack1.mixed-0": "ready"}
    alive = NodeAlive(node=RACK, session=session, sent_s=9.0, round_trip_s=0.001, offset_s=-4.0)
    [answer] = office.says(alive)
    assert answer == RouterAlive(session=session, sent_s=9.0, now_s=office.cluster.clock.now_s())
    info = office.office.infos()[RACK]
    assert (info.state, info.address, info.clock_offset_s) == ("joined", "10.0.0.2", -4.0)


@pytest.mark.parametrize(
    ("join", "complaint"),
    [
        (join_of("rack1", version="9.9"), "it runs Diptych 9.9"),
        (join_of("head"), "is no name for a machine"),
        (join_of("rack1", layout=msgspec.structs.replace(LAYOUT, model_key="x")), "its weights are not the router's"),
        (join_of("rack1", layout=msgspec.structs.replace(LAYOUT, fingerprint="bf16")), "set --kv-dtype"),
        (join_of("rack1", layout=msgspec.structs.replace(LAYOUT, block_size=8)), "its KV blocks hold 8 tokens"),
        (join_of("rack1", layout=msgspec.structs.replace(LAYOUT, max_model_len=63)), "contexts of 63 tokens"),
        (
            msgspec.structs.replace(join_of("rack1"), workers={WorkerId("mixed-0"): Role.MIXED}),
            "its workers must be called rack1",
        ),
    ],
)
def test_who_does_not_fit_is_turned_away_for_good(office: Office, join: Join, complaint: str) -> None:
    [answer] = office.says(join)
    assert isinstance(answer, TurnedAway)
    assert answer.is_final
    assert complaint in answer.reason
    assert office.workers() == {}


def test_a_name_belongs_to_one_machine_at_a_time(office: Office) -> None:
    office.join()
    [answer] = office.says(join_of("rack1", boot="two"), b"b")
    assert isinstance(answer, TurnedAway)
    assert not answer.is_final, "the first one may be given up"
    office.advance(TIMEOUT_S + 0.2)
    assert office.join(connection=b"b", boot="two")


def test_letters_of_others_and_of_before_change_nothing(office: Office) -> None:
    session = office.join()
    office.greet(session + 1)
    office.letter(session, heartbeat("rack1"), b"b")
    office.letter(session, heartbeat("rack2"))
    assert office.workers() == {"rack1.mixed-0": "starting"}
    assert office.border.dropped.num_dropped == 1, "it spoke for another machine's worker"
    again = office.join()
    office.greet(session)
    assert office.workers() == {"rack1.mixed-0": "starting"}
    office.greet(again)
    assert office.workers() == {"rack1.mixed-0": "ready"}
    assert office.says(NodeAlive(node=RACK, session=session, sent_s=0.0, round_trip_s=0, offset_s=0)) == [
        SessionOver(session=session)
    ]


def test_letters_go_where_their_workers_are(office: Office) -> None:
    session = office.join()
    gone = PeerGone(worker_id=WorkerId("decode-0"), incarnation=1)
    office.office.send("node://rack1/mixed-0-1", gone)
    assert office.border.sent[-1] == (
        b"a",
        NodeLetter(session=session, to="node://rack1/mixed-0-1", frame=encode_frame(gone)),
    )
    office.office.send("node://head/decode-0-1", gone)
    assert office.outbox.sent == [("node://head/decode-0-1", gone)]
    with pytest.raises(PeerUnreachableError):
        office.office.send("node://rack2/mixed-0-1", gone)
    other = office.join("rack2", connection=b"b")
    office.says(NodeLetter(session=session, to="node://rack2/mixed-0-1", frame=b"opened by nobody"))
    assert office.border.sent[-1] == (
        b"b",
        NodeLetter(session=other, to="node://rack2/mixed-0-1", frame=b"opened by nobody"),
    )
    office.says(NodeLetter(session=session, to="node://head/decode-0-1", frame=b"nor this"))
    assert office.outbox.frames == [("node://head/decode-0-1", b"nor this")]


def test_who_is_silent_is_lost_and_then_forgotten(office: Office) -> None:
    session = office.join()
    office.greet(session)
    office.advance(TIMEOUT_S - 0.5)
    assert office.workers() == {"rack1.mixed-0": "ready"}
    office.advance(1.0)
    assert office.workers() == {"rack1.mixed-0": "dead"}
    assert office.office.infos()[RACK].state == "lost"
    assert "has said nothing for" in office.router.status().workers[WorkerId("rack1.mixed-0")].outlook
    office.advance(FORGOTTEN_AFTER_S + 1.0)
    assert office.workers() == {}
    assert office.office.infos() == {}


def test_a_lost_machine_comes_back_with_the_same_lives(office: Office) -> None:
    session = office.join()
    office.greet(session, incarnation=3)
    office.advance(TIMEOUT_S + 0.5)
    again = office.join()
    assert again != session
    office.greet(again, incarnation=3)
    assert office.workers() == {"rack1.mixed-0": "ready"}


def test_a_machine_started_anew_counts_its_lives_anew(office: Office) -> None:
    session = office.join()
    office.greet(session, incarnation=3)
    office.letter(session, WorkerExited(worker_id=WorkerId("rack1.mixed-0"), incarnation=3, exit_status=-9))
    office.advance(TIMEOUT_S + 0.5)
    office.greet(office.join(boot="two"), incarnation=1)
    assert office.workers() == {"rack1.mixed-0": "ready"}


def test_where_this_process_stood_still_nobody_was_silent(office: Office) -> None:
    office.greet(office.join())
    office.cluster.clock.sleep(60.0)
    office.office.sweep(office.router)
    assert office.workers() == {"rack1.mixed-0": "ready"}


def test_a_letter_that_is_lost_ends_the_session(office: Office) -> None:
    office.greet(office.join())
    office.border.cut.add(b"a")
    with pytest.raises(PeerUnreachableError):
        office.office.send("node://rack1/mixed-0-1", PeerGone(worker_id=WorkerId("x"), incarnation=1))
    office.advance(0.2)
    assert office.workers() == {"rack1.mixed-0": "dead"}


def submitted(office: Office) -> list[str]:
    letters = [message for _, message in office.border.sent if isinstance(message, NodeLetter)]
    return [str(letter.to) for letter in letters if b"Submit" in letter.frame]


def test_requests_of_a_lost_machine_go_on_elsewhere_or_wait(office: Office) -> None:
    async def scenario() -> None:
        session = office.join()
        office.greet(session)
        asked = await office.cluster.start(office.cluster.request(within_s=300.0))
        assert submitted(office) == ["node://rack1/mixed-0-1"]
        office.advance(TIMEOUT_S + 0.5)
        await office.cluster.let_run()
        assert not asked.done(), "it waits for the machine to come back"
        office.greet(office.join("rack2", connection=b"b"), "rack2", connection=b"b")
        assert submitted(office) == ["node://rack1/mixed-0-1", "node://rack2/mixed-0-1"]
        asked.cancel()

    office.cluster.run(scenario())


def test_requests_wait_no_longer_than_a_machine_is_awaited(office: Office) -> None:
    async def scenario() -> None:
        office.greet(office.join())
        asked = await office.cluster.start(office.cluster.request(within_s=300.0))
        office.advance(TIMEOUT_S + AWAITED_S + 0.5)
        await office.cluster.let_run()
        with pytest.raises(UnavailableError, match=r"rack1\.mixed-0 is out of reach"):
            asked.result()

    office.cluster.run(scenario())


def test_a_machine_that_came_back_is_asked_again(office: Office) -> None:
    async def scenario() -> None:
        office.greet(office.join())
        asked = await office.cluster.start(office.cluster.request(within_s=300.0))
        office.advance(TIMEOUT_S + 0.5)
        office.greet(office.join())
        assert submitted(office) == ["node://rack1/mixed-0-1"] * 2
        assert not asked.done()
        asked.cancel()

    office.cluster.run(scenario())


def test_a_machine_leaves_in_order(office: Office) -> None:
    session = office.join()
    office.greet(session)
    office.office.drain(RACK)
    assert office.border.sent[-1] == (b"a", NodeWanted(session=session))
    office.says(Leaving(node=RACK, session=session, timeout_s=5.0))
    assert office.workers() == {"rack1.mixed-0": "draining"}
    office.says(Left(node=RACK, session=session))
    assert office.workers() == {}
    with pytest.raises(UnavailableError):
        office.router.accept(office.cluster.request())
    with pytest.raises(NotFoundError):
        office.office.drain(RACK)


def test_the_last_word_counts_though_the_connection_has_ended_before(office: Office) -> None:
    session = office.join()
    office.greet(session)
    office.says(Leaving(node=RACK, session=session, timeout_s=5.0))
    office.border.cut.add(b"a")
    office.says(NodeAlive(node=RACK, session=session, sent_s=0.0, round_trip_s=0.0, offset_s=0.0))
    office.says(Left(node=RACK, session=session))
    assert office.office.infos() == {}
    assert office.workers() == {}


def test_who_is_silent_while_it_leaves_has_left(office: Office) -> None:
    session = office.join()
    office.greet(session)
    office.says(Leaving(node=RACK, session=session, timeout_s=60.0))
    office.advance(TIMEOUT_S + 0.5)
    assert office.office.infos() == {}
    assert office.workers() == {}
    again = office.join()
    office.greet(again)
    assert office.workers() == {"rack1.mixed-0": "ready"}


def test_a_lost_machine_may_say_on_another_connection_that_it_has_left(office: Office) -> None:
    session = office.join()
    office.greet(session)
    office.says(Left(node=RACK, session=session), b"b")
    assert office.workers() == {"rack1.mixed-0": "ready"}, "it is there, on its own connection"
    office.advance(TIMEOUT_S + 0.5)
    office.says(Left(node=RACK, session=session + 1), b"b")
    office.says(Left(node=NodeId("rack2"), session=session), b"b")
    office.office.on_arrival(Arrival(b"b", "another key", "10.0.0.2", Left(node=RACK, session=session)), office.router)
    assert office.office.infos()[RACK].state == "lost"
    office.says(Left(node=RACK, session=session), b"b")
    assert office.office.infos() == {}
    assert office.workers() == {}


def test_workers_are_ended_and_started_by_their_own_machine(office: Office) -> None:
    session = office.join()
    office.greet(session, incarnation=2)
    far = PeerAddress(WorkerId("rack1.mixed-0"), "node://rack1/mixed-0-2", 2, RACK)
    near = PeerAddress(WorkerId("decode-0"), "node://head/decode-0-1", 1, NodeId("head"))
    office.office.retire(far, True)
    office.office.retire(near, False)
    office.office.revive(far.worker_id)
    office.office.revive(near.worker_id)
    wanted: Sequence[ToNode] = [message for _, message in office.border.sent if isinstance(message, WorkerWanted)]
    assert wanted == [
        WorkerWanted(session=session, worker_id=far.worker_id, action="replace", incarnation=2),
        WorkerWanted(session=session, worker_id=far.worker_id, action="revive"),
    ]
    assert (office.staff.retired, office.staff.revived) == ([near], [near.worker_id])
