"""The front process: HTTP frontend and router on one event loop. Started by the launcher."""

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path

import uvloop
import zmq
import zmq.asyncio

from diptych.core.addresses import border_name
from diptych.core.clock import SystemClock
from diptych.core.control import (
    ALIVE_INTERVAL_S,
    Alive,
    ClusterOrder,
    ClusterReady,
    FromLauncher,
    FrontendListening,
    FrontendOrder,
    Retire,
    Revive,
    StartFailure,
)
from diptych.core.errors import DiptychError, LaunchError
from diptych.core.ids import WorkerId
from diptych.core.logs import about
from diptych.core.messages import Letter, PeerAddress, ToRouter
from diptych.core.node_messages import Terms
from diptych.core.service import ClusterStatus
from diptych.core.slo import Slo
from diptych.core.version import __version__
from diptych.frontend.app import create_app
from diptych.frontend.server import FrontendServer
from diptych.frontend.settings import FrontendSettings
from diptych.frontend.text.tokenizer import Tokenizer
from diptych.frontend.tls import ServerTls
from diptych.kv.hashing import BlockHasher
from diptych.router.inspection import InspectedInbox
from diptych.router.nodes import NodeOffice
from diptych.router.ports import Staff
from diptych.router.router import Router
from diptych.router.settings import RouterSettings
from diptych.telemetry.metrics import Metrics
from diptych.telemetry.trace_setup import open_traces
from diptych.telemetry.watch import Watch
from diptych.wire.border import HostPort, RouterBorder
from diptych.wire.child import join_launcher
from diptych.wire.cluster_keys import read_head_keys
from diptych.wire.control import ControlChannel
from diptych.wire.dropped import DroppedMessages
from diptych.wire.mailbox import AsyncInbox, Outbox
from diptych.wire.neighbours import Neighbours

ORDER_TIMEOUT_S = 300.0
READY_POLL_S = 0.01
log = logging.getLogger("diptych.launch.front")  # its own name is __main__


async def _run(order: FrontendOrder, control: ControlChannel[FromLauncher]) -> None:
    tokenizer = Tokenizer(Path(order.model.path))
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    inbox: AsyncInbox[ToRouter] = AsyncInbox(zmq.asyncio.Context(context), order.endpoint, ToRouter)
    inboxes = order.endpoint.rpartition("/")[0]
    outbox = Outbox(context, inboxes, order.node)
    clock = SystemClock()
    slo = Slo(order.slo_ttft_s, order.slo_tpot_s)
    metrics = Metrics(order.model.name, slo, clock) if order.has_metrics else None
    watch = Watch(clock, metrics, open_traces(os.environ, order.model.name, clock), order.slow_request_s)
    staff = _Launcher(control)
    cluster = None if order.cluster is None else _Cluster(order, order.cluster, context, outbox, staff, clock)
    office = None if cluster is None else cluster.office
    router = Router(
        model=order.model.name,
        max_model_len=order.max_model_len,
        hasher=BlockHasher(order.model.key, order.layout_fingerprint, block_size=order.block_size),
        inbox=InspectedInbox(inbox, Neighbours(order.endpoint, order.workers, node=order.node), order.fellows),
        outbox=office or outbox,
        clock=clock,
        settings=RouterSettings(
            max_outstanding_requests=order.max_outstanding_requests,
            local_prefill_max_tokens=order.local_prefill_max_tokens,
            routing=order.routing,
            routing_temperature=order.routing_temperature,
            balancing_threshold=order.balancing_threshold,
            slo_ttft_s=order.slo_ttft_s,
            slo_tpot_s=order.slo_tpot_s,
            admission=order.admission,
            queue_timeout_s=order.queue_timeout_s,
            routing_seed=order.router,
            router=order.router,
            frontend=order.incarnation,
        ),
        expected_workers=order.workers,
        costs=order.costs,
        staff=office or staff,
        observer=watch,
        nodes=office,
        fellows=order.fellows,
    )
    settings = FrontendSettings(
        model_name=order.model.name,
        max_model_len=order.max_model_len,
        model_key=order.model.key,
        eos_token_ids=frozenset(order.model.eos_token_ids),
        chat_template=order.chat_template,
        root_path=order.root_path,
        cors_origins=tuple(order.cors_origins),
        api_keys=tuple(order.api_keys),
        api_key_file=None if order.api_key_file is None else Path(order.api_key_file),
        slo=Slo(order.slo_ttft_s, order.slo_tpot_s),
        request_timeout_s=order.request_timeout_s,
        client_timeout_s=order.client_timeout_s,
        max_connections=order.max_connections,
    )
    tls = None
    if order.tls_cert is not None and order.tls_key is not None:
        tls = ServerTls(Path(order.tls_cert), Path(order.tls_key), clock).context
    server = FrontendServer(create_app(router, tokenizer, settings, clock, watch), order.host, order.port, tls)
    control.send(FrontendListening(port=server.bind()))
    must_stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, must_stop.set)
    try:
        async with asyncio.TaskGroup() as tasks:
            routing = tasks.create_task(router.run())
            tasks.create_task(server.serve())
            receiving = None if office is None else tasks.create_task(office.run(router))
            announcing = tasks.create_task(_announce_ready(router, control, can_wait=bool(order.workers)))
            living = tasks.create_task(_say_alive(control))
            await must_stop.wait()
            announcing.cancel()
            await server.stop(order.drain_timeout_s)
            routing.cancel()
            living.cancel()
            if receiving is not None:
                receiving.cancel()
    finally:
        await watch.close()
        inbox.close()
        outbox.close()
        if cluster is not None:
            cluster.close()


async def _announce_ready(router: Router, control: ControlChannel[FromLauncher], *, can_wait: bool) -> None:
    """Say when requests can be served; without `can_wait`, at once: the workers are to come from other machines."""
    while can_wait and router.status().health != "ready":  # noqa: ASYNC110  once, at the start
        await asyncio.sleep(READY_POLL_S)
    control.send(ClusterReady())
    _tell_ready(router.status())


def _tell_ready(status: ClusterStatus) -> None:
    """Write the line of the log with which a server begins."""
    workers = {worker_id: str(info.role) for worker_id, info in status.workers.items()}
    num_blocks = sum(info.status.num_blocks for info in status.workers.values())
    log.info(
        "version %s serves %s: context %d tokens, %d KV blocks, workers %s",
        __version__,
        status.model,
        status.max_model_len,
        num_blocks,
        ", ".join(workers),
        extra=about(
            event="startup",
            version=__version__,
            model=status.model,
            max_model_len=status.max_model_len,
            num_blocks=num_blocks,
            workers=workers,
        ),
    )


async def _say_alive(control: ControlChannel[FromLauncher]) -> None:
    while True:
        control.try_send(Alive())
        await asyncio.sleep(ALIVE_INTERVAL_S)


class _Cluster:
    """What only a router has that other machines may join."""

    def __init__(  # noqa: PLR0913, PLR0917  where letters come from and go to
        self,
        order: FrontendOrder,
        cluster: ClusterOrder,
        context: zmq.Context[zmq.Socket[bytes]],
        outbox: Outbox,
        staff: Staff,
        clock: SystemClock,
    ) -> None:
        """Raises: LaunchError, ConfigError."""
        own, allowed = read_head_keys(Path(cluster.keys))
        listen = HostPort.parse(cluster.listen, "--cluster-listen").of_router(order.router)
        self._border = RouterBorder(listen, own, allowed, DroppedMessages("the cluster's port"))
        endpoint = f"{order.endpoint.rpartition('/')[0]}/{border_name(order.router)}"
        self._letters: AsyncInbox[Letter] = AsyncInbox(zmq.asyncio.Context(context), endpoint, Letter)
        terms = Terms(
            settings=cluster.settings,
            layout=cluster.layout,
            transfer_secret=cluster.transfer_secret,
            sent_s=0.0,
            now_s=0.0,
            frontend=order.incarnation,
        )
        self.office = NodeOffice(self._border, outbox, self._letters, staff, terms, clock, cluster.timeout_s)

    def close(self) -> None:
        """Stop listening."""
        self._letters.close()
        self._border.close()


class _Launcher:
    """The router's `Staff`: it is the launcher who ends and starts workers."""

    def __init__(self, control: ControlChannel[FromLauncher]) -> None:
        self._control = control

    def retire(self, address: PeerAddress, will_return: bool) -> None:
        """Have a worker ended."""
        worker_id, incarnation = address.worker_id, address.incarnation
        self._control.send(Retire(worker_id=worker_id, incarnation=incarnation, will_return=will_return))

    def revive(self, worker_id: WorkerId) -> None:
        """Have a worker started."""
        self._control.send(Revive(worker_id=worker_id))


def main() -> int:
    """Run the front process; called by the launcher as `python -m diptych.launch.front --control FD`."""
    control: ControlChannel[FromLauncher] = join_launcher(FromLauncher)
    try:
        _serve(control)
    except* DiptychError as errors:
        control.send(StartFailure(message=_first_message(errors)))
        exit_status = 1
    else:
        exit_status = 0
    return exit_status


def _serve(control: ControlChannel[FromLauncher]) -> None:
    order = control.receive(ORDER_TIMEOUT_S)
    if not isinstance(order, FrontendOrder):
        raise LaunchError(f"expected the frontend's order, got {type(order).__name__}")
    os.sched_setaffinity(0, set(order.cores))
    control.end_process_with_launcher()
    uvloop.run(_run(order, control))


def _first_message(errors: BaseException) -> str:
    while isinstance(errors, BaseExceptionGroup):
        errors = errors.exceptions[0]
    return str(errors)


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # threads of libraries need not be waited for: all that matters has been closed
