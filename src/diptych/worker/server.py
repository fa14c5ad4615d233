"""One worker process: get the order, load the model, take the lease, then serve (loop.py) until told to stop."""

import os
import signal
import sys
from pathlib import Path

import zmq

from diptych.core.clock import SystemClock
from diptych.core.control import FromLauncher, LayoutReport, Lease, StartFailure, WorkerOrder
from diptych.core.errors import DiptychError, LaunchError
from diptych.core.messages import Remains, ToWorker
from diptych.engine.loading import load_engine
from diptych.kv.header import SegmentHeader, header_bytes
from diptych.transfer.segment import Segment
from diptych.wire.child import join_launcher
from diptych.wire.control import ControlChannel
from diptych.wire.mailbox import Inbox
from diptych.worker.lifeline import Lifeline
from diptych.worker.loop import Worker
from diptych.worker.memory import WorkerMemory

LEASE_TIMEOUT_S = 120.0


def _start(control: ControlChannel[FromLauncher]) -> Worker:
    order = control.receive(LEASE_TIMEOUT_S)
    if not isinstance(order, WorkerOrder):
        raise LaunchError(f"expected a worker's order, got {type(order).__name__}")
    os.sched_setaffinity(0, set(order.cores))  # the engine's threads inherit it, and the niceness
    os.nice(order.niceness)
    clock = SystemClock()
    engine = load_engine(
        order.engine,
        model_dir=Path(order.model.path),
        eos_token_ids=frozenset(order.model.eos_token_ids),
        num_threads=len(order.cores),
        kv_dtype=order.kv_dtype,
        modeled_costs=order.modeled_costs,
        clock=clock,
    )
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    # Before it can be leased any block: from its inbox others know that there was this life, should it end at once.
    inbox: Inbox[ToWorker | Remains] = Inbox(context, order.endpoint, ToWorker, Remains)
    layout = engine.layout
    control.send(
        LayoutReport(
            block_size=layout.block_size,
            block_bytes=layout.block_bytes,
            fingerprint=layout.fingerprint,
            engine=engine.name,
        )
    )
    lease = control.receive(LEASE_TIMEOUT_S)
    if not isinstance(lease, Lease):
        raise LaunchError(f"expected a lease, got {type(lease).__name__}")
    segment = Segment(order.segment_fd)
    segment.populate()
    header = SegmentHeader.open(segment.view(0, segment.num_bytes))
    header.require(layout.fingerprint, order.model.key)
    blocks_at = header_bytes(header.num_blocks, header.shape.extent_blocks)
    blocks = segment.view(blocks_at, header.num_blocks * layout.block_bytes)
    engine.bind(blocks, header.num_blocks)
    memory = WorkerMemory(header, blocks, layout, has_checksums=order.has_kv_checksums)
    return Worker(order, engine, memory, lease, clock, Lifeline(control, clock), context, inbox)


def main() -> int:
    """Run a worker; called by the launcher as `python -m diptych.worker.server --control FD`."""
    control: ControlChannel[FromLauncher] = join_launcher(FromLauncher)
    try:
        worker = _start(control)
    except DiptychError as error:
        control.send(StartFailure(message=str(error)))
        return 1
    signal.signal(signal.SIGTERM, worker.stop)
    control.end_process_with_launcher()
    worker.run()
    return 0


if __name__ == "__main__":
    # Not sys.exit: the engine's threads and the mapping would be torn down in an order that nobody has tested.
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
