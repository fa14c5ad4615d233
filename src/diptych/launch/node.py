"""A machine that serves for a router elsewhere: a launcher without a frontend (`diptych worker --join`).

ask what is served -> workers compile, agree with the router's layout, warm up -> join -> serve -> leave in order

The router's machine may end and come back: workers here stay, and join its next life. This machine may end: what its
workers had goes on elsewhere.
"""

import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import zmq

from diptych.core.addresses import HEAD_NODE, node_worker_id
from diptych.core.clock import SystemClock
from diptych.core.clock_offset import ClockOffset
from diptych.core.control import LayoutReport
from diptych.core.errors import LaunchError, PeerUnreachableError
from diptych.core.ids import NodeId
from diptych.core.node_config import node_config
from diptych.core.node_messages import NODE_ALIVE_INTERVAL_S, Join, Knock, Terms, TurnedAway
from diptych.core.version import __version__
from diptych.launch.access import Access
from diptych.launch.cores import CorePlan, share_cores, usable_cores
from diptych.launch.crew import Crew
from diptych.launch.disk_kv import plan_disk_kv
from diptych.launch.kv_store import plan_kv_store
from diptych.launch.local import roles_of
from diptych.launch.orders import Agreement, Orders
from diptych.launch.relays import Relays
from diptych.launch.run_directory import RunDirectory
from diptych.launch.segment_plan import SegmentPlan
from diptych.launch.starting import StartWatch
from diptych.launch.supervisor import Supervisor
from diptych.launch.transfer_plan import node_transfer
from diptych.models import Progress, resolve
from diptych.wire.border import HostPort, NodeBorder
from diptych.wire.cluster_keys import NodeKeys
from diptych.wire.dropped import DroppedMessages

POLL_S = 0.05
LEFT_GRACE_S = 10.0
"""How much longer than its drain a machine may take to leave."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StartedNode:
    """What came up."""

    node: NodeId
    cores: CorePlan
    plan: SegmentPlan
    layout: LayoutReport
    costs_source: str
    round_trip_s: float
    """To the router and back."""
    ready_after_s: float


class Node:
    """The processes of a machine that joins. Not restartable: after `stop` make a new one."""

    def __init__(self, name: NodeId, router: HostPort, keys: NodeKeys, own: Mapping[str, Any]) -> None:
        """`own`: settings that are not the router's; None: not given."""
        self._name = name
        self._router = router
        self._keys = keys
        self._own = own
        self._boot = secrets.token_hex(8)
        self._clock = SystemClock()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._border = NodeBorder(self._context, router, keys, DroppedMessages(f"the connection to {router}"))
        self._directory: RunDirectory | None = None
        self._crew: Crew | None = None
        self._relays: Relays | None = None
        self._supervisor: Supervisor | None = None
        self._drain_timeout_s = 0.0

    # Start

    def start(
        self, join_timeout_s: float, progress: Progress | None, on_progress: Callable[[str], None]
    ) -> StartedNode:
        """Start everything and return when the machine has joined.

        `join_timeout_s`: how long the router may be out of reach.

        Raises: LaunchError, ConfigError, ModelError; everything that was started has been stopped.
        """
        try:
            return self._start(join_timeout_s, progress, on_progress)
        except BaseException:
            self.kill()
            raise

    def _start(
        self, join_timeout_s: float, progress: Progress | None, on_progress: Callable[[str], None]
    ) -> StartedNode:
        begin_s = time.monotonic()
        on_progress(f"asking {self._router} what is served")
        offset = ClockOffset()
        terms = self._ask_terms(join_timeout_s, offset)
        config = node_config(terms.settings, terms.layout.max_model_len, self._own)
        self._drain_timeout_s = config.drain_timeout_s
        model = resolve(config.model, progress=progress)
        if model.key != terms.layout.model_key:
            raise LaunchError(
                f"{config.model} is not the router's model: here {model.key}, there {terms.layout.model_key}; make the "
                "files the same on both machines, or say where they are with --model"
            )
        roles = {node_worker_id(self._name, one): role for one, role in roles_of(config).items()}
        cores = share_cores(usable_cores(config.cores), roles)
        disk, store = plan_disk_kv(config, roles), plan_kv_store(config)
        self._directory = RunDirectory()
        transfer = node_transfer(config, self._router, terms.transfer_secret)
        orders = Orders(config, model, Access(), roles, cores, self._directory, disk, store, self._name, transfer)
        self._relays = Relays(self._context, self._border, self._router, self._keys, orders, terms, offset, self._clock)
        relays = self._relays
        self._crew = Crew(config, model, roles, cores, is_one_of_many=True)
        crew = self._crew
        watch = StartWatch(lambda: list(crew.workers.values()), config.start_timeout_s)
        on_progress("compiling the model")
        crew.begin(orders)
        agreement = crew.agree(watch)
        _require_same_layout(terms, agreement)
        crew.lease(agreement)
        on_progress("warming up")
        for worker in crew.workers.values():
            watch.wait_until_up(worker)
        self._supervisor = Supervisor(
            orders,
            agreement,
            crew.segment_descriptor,
            [],
            config.start_timeout_s,
            crew.workers,
            [],
            relays.signals.ended,
        )
        self._supervisor.start()
        join = Join(
            node=self._name,
            boot=self._boot,
            version=__version__,
            layout=orders.layout(agreement),
            workers=roles,
            costs=agreement.costs.models,
            num_cores=sum(len(own) for own in cores.workers.values()),
            segment_bytes=config.kv_bytes,
        )
        on_progress("joining")
        relays.start(join, self._supervisor.ask, self._supervisor.greet_router)
        self._wait_until_in(relays, join_timeout_s)
        took_s = time.monotonic() - begin_s
        layout, plan, source = agreement.layout, agreement.plan, agreement.costs.source
        return StartedNode(self._name, cores, plan, layout, source, offset.round_trip_s, took_s)

    def _ask_terms(self, timeout_s: float, offset: ClockOffset) -> Terms:
        """Knock until there is an answer. Raises: LaunchError."""
        if self._name == HEAD_NODE:
            raise LaunchError(f"--node: {HEAD_NODE} is the router's machine; give this one another name")
        give_up_s = self._clock.now_s() + timeout_s
        reason = f"no answer from {self._router}: is the router up, and are its keys those of --keys?"
        while self._clock.now_s() < give_up_s:
            sent_s = self._clock.now_s()
            with contextlib.suppress(PeerUnreachableError):
                self._border.send(Knock(node=self._name, boot=self._boot, version=__version__, sent_s=sent_s))
            if not self._border.socket.poll(round(NODE_ALIVE_INTERVAL_S * 1000)):
                continue
            for message in self._border.receive_waiting():
                if isinstance(message, Terms):
                    offset.on_answer(message.sent_s, message.now_s, self._clock.now_s())
                    return message
                if isinstance(message, TurnedAway) and message.is_final:
                    raise LaunchError(f"the router turns this machine away: {message.reason}")
                if isinstance(message, TurnedAway):
                    reason = f"the router turns this machine away: {message.reason}"
            self._clock.sleep(POLL_S)
        raise LaunchError(f"{reason} (tried for {timeout_s:.0f} s, --join-timeout-s)")

    def _wait_until_in(self, relays: Relays, timeout_s: float) -> None:
        """Wait for all routers or, if that takes too long, for one. Raises: LaunchError."""
        give_up_s = self._clock.now_s() + timeout_s
        while not relays.is_all_in:
            if relays.signals.ended.is_set():
                raise LaunchError(relays.failure or "a worker's process has failed")
            if self._clock.now_s() > give_up_s:
                if relays.is_in:
                    log.warning("not all routers have let this machine in yet; it serves for those that have")
                    return
                raise LaunchError(f"{self._router} did not let this machine in within {timeout_s:.0f} s")
            self._clock.sleep(POLL_S)

    # Serve

    @property
    def is_in(self) -> bool:
        """Whether a router knows this machine at the moment."""
        return self._relays is not None and self._relays.is_in

    def wait(self, timeout_s: float) -> bool:
        """Wait until the machine is to leave, because an operator wants it; tell whether it is.

        Raises: LaunchError if it cannot serve any more.
        """
        relays = self._relays
        assert relays is not None
        if relays.signals.ended.is_set():
            raise LaunchError(relays.failure or "nobody looks after the workers any more; the log says why")
        return relays.signals.is_leave_wanted.wait(timeout_s)

    # Stop

    def stop(self) -> None:
        """Leave in order: what does not end within the drain's timeout goes on elsewhere. Then end all processes."""
        relays, supervisor = self._relays, self._supervisor
        if relays is not None and supervisor is not None:
            relays.leave(self._drain_timeout_s)
            give_up_s = self._clock.now_s() + self._drain_timeout_s + LEFT_GRACE_S
            while supervisor.num_living and relays.is_in and self._clock.now_s() < give_up_s:
                self._clock.sleep(POLL_S)
        self._stop_supervisor()
        if self._crew is not None:
            self._crew.stop()
        self.kill()

    def kill(self) -> None:
        """End all processes at once and remove what they used; once more does nothing."""
        self._stop_supervisor()
        if self._crew is not None:
            self._crew.kill()
        if self._relays is not None:
            self._relays.close()
        self._border.close()
        if self._directory is not None:
            self._directory.close()
        self._context.destroy(linger=0)

    def _stop_supervisor(self) -> None:
        if self._supervisor is not None and self._crew is not None:
            self._supervisor.stop()
            self._crew.take_back(self._supervisor.workers())
            self._supervisor = None


def _require_same_layout(terms: Terms, agreement: Agreement) -> None:
    """Raises: LaunchError if KV is laid out in another way here than where the router is."""
    ours, theirs = agreement.layout, terms.layout
    if (ours.fingerprint, ours.block_size) != (theirs.fingerprint, theirs.block_size):
        raise LaunchError(
            f"KV is laid out as {ours.engine} here and as {theirs.engine} where the router is: set --kv-dtype there to "
            "a precision that both machines support"
        )
