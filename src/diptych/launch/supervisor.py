"""Keeps the processes of a server alive: reaps who ends, kills who hangs, starts new ones in their places.

A worker's death is told to the routers, which move its requests, and to the other workers, which let go of what they
were doing for it; a frontend's to the workers, which free what it had asked for, and to the other routers. A worker's
blocks are leased to its successor only when every other worker has said that it writes none of them any more (or is
dead itself): the fence that keeps a late writer out of somebody else's blocks.

    UP --ends, or hangs and is killed--> DOWN --backoff--> COMPILING --> FENCING --> WARMING --> UP

See: fence.py, notices.py, and policy/restarting.py for the backoff.
"""

import logging
import select
import threading
import time
from collections.abc import Iterable, Sequence
from queue import SimpleQueue

from diptych.core.control import Alive, Fenced, LayoutReport, Retire, Revive, StartFailure, ToLauncher, Unheard
from diptych.core.errors import LaunchError, ProtocolError
from diptych.core.ids import FIRST_ROUTER, RouterId, WorkerId
from diptych.launch import fence
from diptych.launch.notices import Notices
from diptych.launch.orders import Agreement, Orders
from diptych.launch.process import ChildProcess, describe_exit
from diptych.launch.seat import Seat, SeatState
from diptych.launch.starvation import Starvation
from diptych.policy.restarting import MEMORY_S, plan_restart

WORKER_MODULE = "diptych.worker.server"
FRONTEND_MODULE = "diptych.launch.front"
POLL_S = 0.1
HUNG_AFTER_S = 1.75
"""Silence after which a process is taken for hung. With `POLL_S` it is found within 2 s."""
SUSPECT_AFTER_S = 0.5
"""Silence from which on it is watched whether it has a core: while others have it, it is not taken for hung."""
REAP_TIMEOUT_S = 5.0
log = logging.getLogger(__name__)


class Supervisor:
    """Watches the seats of a cluster on a thread of its own, from `start` to `stop`."""

    def __init__(  # noqa: PLR0913, PLR0917  what a new life needs, and who is alive
        self,
        orders: Orders,
        agreement: Agreement,
        segment_descriptor: int,
        ports: Sequence[int],
        start_timeout_s: float,
        workers: dict[WorkerId, ChildProcess],
        frontends: Sequence[ChildProcess],
        ended: threading.Event,
    ) -> None:
        """`frontends`, and the `ports` that they listen on: none where they are on another machine. `ended` is set when
        there is none any more: all were asked to end, or the last one dies again and again.
        """
        self._orders = orders
        self._agreement = agreement
        self._segment_descriptor = segment_descriptor
        self._ports = ports
        self._start_timeout_s = start_timeout_s
        now_s = time.monotonic()
        self._frontends = [
            Seat(child.name, None, child, orders.first_frontend, RouterId(number), heard_s=now_s)
            for number, child in enumerate(frontends)
        ]
        self._workers = {
            worker_id: Seat(worker_id, worker_id, child, number, heard_s=now_s)
            for number, (worker_id, child) in enumerate(workers.items(), start=1)
        }
        self._notices = Notices(orders, self._workers.values())
        self._asked: SimpleQueue[Retire | Revive] = SimpleQueue()
        self._to_greet: SimpleQueue[RouterId] = SimpleQueue()
        self._is_ending = threading.Event()
        self._is_stopping = threading.Event()
        self._turned_s = now_s
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self._ended = ended

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def end_frontends(self, timeout_s: float) -> None:
        """Let the frontends finish what they have and end, while everybody else is still looked after."""
        self._is_ending.set()
        children = [seat.child for seat in self._frontends if seat.child is not None]
        for child in children:
            child.terminate()
        if children:
            self._ended.wait(timeout_s)

    def stop(self) -> None:
        """Watch no more; whoever lives goes on. Once more does nothing."""
        self._is_stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        self._notices.close()

    def ask(self, wish: Retire | Revive) -> None:
        """Have a worker ended or started, as soon as its turn comes; from any thread."""
        self._asked.put(wish)

    def greet_router(self, router: RouterId = FIRST_ROUTER) -> None:
        """Tell a router that knows nobody yet of those who do not live; who lives greets it; from any thread."""
        self._to_greet.put(router)

    @property
    def num_living(self) -> int:
        """How many workers have a process; from any thread."""
        return sum(seat.child is not None for seat in self._workers.values())

    def workers(self) -> list[ChildProcess]:
        """Return all workers' processes that have not been reaped; only after `stop`."""
        return [seat.child for seat in self._workers.values() if seat.child is not None]

    def frontends(self) -> list[ChildProcess]:
        """Return the frontends' processes that have not been reaped; only after `stop`."""
        return [seat.child for seat in self._frontends if seat.child is not None]

    def _seats(self) -> Iterable[Seat]:
        return [*self._workers.values(), *self._frontends]

    # The loop

    def _run(self) -> None:
        try:
            while not self._is_stopping.is_set():
                self._turn()
        except Exception:
            # A thread's edge: a server that nobody looks after must not go on as if somebody did.
            log.exception("the supervisor has failed")
            self._ended.set()

    def _turn(self) -> None:
        self._wait()
        now_s = time.monotonic()
        # Where this process itself stood still, nobody else was silent.
        stood_still_s = now_s - self._turned_s - POLL_S
        self._turned_s = now_s
        for seat in self._seats():
            seat.heard_s += max(stood_still_s, 0.0)
            self._look_after(seat, now_s)
        while not self._asked.empty():
            self._on_wish(self._asked.get(), now_s)
        while not self._to_greet.empty():
            self._notices.tell_of_absent(self._to_greet.get())

    def _wait(self) -> None:
        """Return when any process has said something or ended, or after a while."""
        poller = select.poll()
        for seat in self._seats():
            if seat.child is not None:
                poller.register(seat.child.exit_descriptor, select.POLLIN)
                if not seat.child.control.has_ended:
                    poller.register(seat.child.control.fileno(), select.POLLIN)
        poller.poll(POLL_S * 1000)

    def _look_after(self, seat: Seat, now_s: float) -> None:
        if seat.child is not None:
            for message in _messages(seat.child):
                self._on_message(seat, message, now_s)
            if seat.child.poll() is not None:
                self._on_exit(seat, seat.child, now_s)
            else:
                self._kill_if_late(seat, seat.child, now_s)
        if seat.state is SeatState.FENCING:
            self._lease_if_fenced(seat, now_s)
        elif seat.state is SeatState.DOWN and self._is_due(seat, now_s):
            self._begin_life(seat, now_s)

    def _is_due(self, seat: Seat, now_s: float) -> bool:
        is_wanted = seat.worker_id is not None or not self._is_ending.is_set()
        return is_wanted and seat.due_s is not None and now_s >= seat.due_s

    def _on_message(self, seat: Seat, message: ToLauncher, now_s: float) -> None:
        match message:
            case Alive():
                if seat.state is SeatState.WARMING:
                    log.warning("%s is up again", seat.name)
                    seat.enter(SeatState.UP, now_s)
                seat.hear(now_s)
            case Fenced(worker_id=worker_id) if worker_id in self._workers:
                fence.on_fenced(self._workers[worker_id], seat, message)
            case Unheard(worker_id=worker_id, incarnation=incarnation) if seat.worker_id is not None:
                self._on_unheard(seat, worker_id, incarnation)
            case LayoutReport(fingerprint=fingerprint):
                if fingerprint == self._agreement.layout.fingerprint:
                    seat.enter(SeatState.FENCING, now_s)
                else:
                    log.error("%s has come back with another KV layout and is ended", seat.name)
                    self._kill(seat)
            case StartFailure(message=text):
                log.error("%s does not start: %s", seat.name, text)
            case Retire() | Revive():
                self._on_wish(message, now_s)
            case _:
                pass

    def _on_wish(self, wish: Retire | Revive, now_s: float) -> None:
        if isinstance(wish, Retire):
            self._retire(wish.worker_id, wish.incarnation, will_return=wish.will_return)
        else:
            self._revive(wish.worker_id, now_s)

    # Ends

    def _retire(self, worker_id: WorkerId, incarnation: int, *, will_return: bool) -> None:
        seat = self._workers.get(worker_id)
        if seat is not None and seat.child is not None and seat.incarnation == incarnation:
            seat.retirement = will_return
            seat.child.terminate()

    def _kill_if_late(self, seat: Seat, child: ChildProcess, now_s: float) -> None:
        silent_s = now_s - seat.heard_s
        if seat.state is SeatState.UP and silent_s > SUSPECT_AFTER_S:
            seat.starvation = seat.starvation or Starvation(child.pid, now_s)
            waited_s = seat.starvation.waited_s(now_s)
            if silent_s - waited_s > HUNG_AFTER_S:
                text = "%s (pid %d) has stood still for %.1f s and is killed; it waited %.1f s for a core"
                log.error(text, seat.name, child.pid, silent_s, waited_s)
                self._kill(seat)
        elif seat.state is not SeatState.UP and silent_s > self._start_timeout_s:
            log.error("%s was not up within %.0f s and is killed", seat.name, self._start_timeout_s)
            self._kill(seat)

    def _on_unheard(self, accuser: Seat, worker_id: WorkerId, incarnation: int) -> None:
        """End a worker that does not answer another, so that its blocks are safe.

        If the other does not hear its successor either, it is rather its own ears that are deaf.
        """
        accused = self._workers.get(worker_id)
        if accused is None or accused is accuser or accused.incarnation != incarnation:
            return
        if accused.child is None or accused.child.poll() is not None:
            return
        guilty = accuser if worker_id in accuser.accused else accused
        accuser.accused.add(worker_id)
        log.error("%s does not hear anything of %s: %s is killed", accuser.name, accused.name, guilty.name)
        self._kill(guilty)

    def _kill(self, seat: Seat) -> None:
        if seat.child is not None:
            seat.child.kill()

    def _on_exit(self, seat: Seat, child: ChildProcess, now_s: float) -> None:
        """Bury a process: tell everyone, let go of what was its, and plan its successor."""
        status = child.poll()
        assert status is not None
        had_blocks = seat.has_blocks
        child.close()
        seat.child = None
        seat.enter(SeatState.DOWN, now_s)
        will_return, outlook = self._plan_return(seat, now_s)
        if not self._is_ending.is_set():
            log.warning("%s has ended (%s); %s", seat.name, describe_exit(status), outlook)
        if seat.worker_id is None:
            self._notices.tell_of_frontend(seat)
            return
        if had_blocks:
            fence.raise_fence(seat, self._workers.values())
            self._notices.tell_of_peer(seat)
        self._notices.tell_routers(seat, status, outlook, will_return=will_return)

    def _plan_return(self, seat: Seat, now_s: float) -> tuple[bool, str]:
        """Set when the next life begins; return whether requests may wait for it, and what to say of it."""
        if seat.worker_id is None and self._is_ending.is_set():
            self._end_if_last()
            return False, ""
        retirement, seat.retirement = seat.retirement, None
        if retirement is False:
            seat.due_s = None
            return False, f"taken out of service; `diptych restart {seat.name}` starts it"
        if retirement:
            seat.due_s = now_s
            return True, "a new one starts now"
        seat.deaths_s = [*(death_s for death_s in seat.deaths_s if now_s - death_s < MEMORY_S), now_s]
        restart = plan_restart(seat.deaths_s, now_s)
        seat.due_s = now_s + restart.delay_s
        if not restart.is_crash_loop:
            return True, "a new one starts now"
        if seat.worker_id is None:
            self._end_if_last()
        return False, f"it has died {restart.num_deaths} times of late; the next try is in {restart.delay_s:.0f} s"

    def _end_if_last(self) -> None:
        """Note that nobody serves any more, if that is so."""
        if all(seat.child is None for seat in self._frontends):
            self._ended.set()

    # Lives

    def _revive(self, worker_id: WorkerId, now_s: float) -> None:
        seat = self._workers.get(worker_id)
        if seat is not None and seat.state is SeatState.DOWN:
            seat.due_s = now_s

    def _begin_life(self, seat: Seat, now_s: float) -> None:
        seat.due_s = None
        seat.incarnation += 1
        seat.accused.clear()
        try:
            if seat.worker_id is None:
                self._begin_frontend(seat, now_s)
            else:
                seat.child = ChildProcess(seat.name, WORKER_MODULE, self._orders.log, [self._segment_descriptor])
                seat.enter(SeatState.COMPILING, now_s)
                order = self._orders.worker(seat.worker_id, seat.incarnation, self._segment_descriptor)
                seat.child.control.send(order)
        except LaunchError as error:
            log.error("%s", error)  # noqa: TRY400  no traceback wanted
            seat.enter(SeatState.DOWN, now_s)
            seat.deaths_s.append(now_s)
            seat.due_s = now_s + plan_restart(seat.deaths_s, now_s).delay_s

    def _begin_frontend(self, seat: Seat, now_s: float) -> None:
        seat.child = ChildProcess(seat.name, FRONTEND_MODULE, self._orders.log)
        seat.enter(SeatState.WARMING, now_s)
        port = self._ports[seat.router]
        seat.child.control.send(self._orders.frontend(seat.router, seat.incarnation, port, self._agreement))
        self._notices.tell_of_absent(seat.router)

    def _lease_if_fenced(self, seat: Seat, now_s: float) -> None:
        """Give the successor its blocks once nobody writes into them for the life before."""
        workers = self._workers.values()
        if seat.worker_id is None or seat.child is None or not fence.is_fence_down(seat, workers):
            return
        fence.lease_again(self._segment_descriptor, seat, self._agreement.plan.extents[seat.worker_id])
        seat.enter(SeatState.WARMING, now_s)
        lives = {peer.worker_id: peer.incarnation for peer in workers if peer.worker_id and peer.has_blocks}
        seat.child.control.send(self._agreement.lease(seat.worker_id, lives))


def _messages(child: ChildProcess) -> list[ToLauncher]:
    try:
        return child.control.receive_waiting()
    except ProtocolError as error:
        log.error("%s: %s", child.name, error)  # noqa: TRY400  no traceback wanted
        child.kill()
        return []
