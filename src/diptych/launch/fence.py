"""The fence between two lives of a worker: the next one gets its blocks when nobody writes into them for the last.

A worker that dies leaves others at work that still push KV into its blocks. Each of them says when it has let go
(`Fenced`), or is dead itself. Until then the successor, which would fill the same blocks with other tokens, waits.
"""

from collections.abc import Collection, Sequence

from diptych.core.control import Fenced
from diptych.kv.header import SegmentHeader
from diptych.launch.seat import Seat
from diptych.transfer.segment import Segment


def raise_fence(seat: Seat, workers: Collection[Seat]) -> None:
    """Note who may be writing into the blocks of a life that is over; called once it is `DOWN`."""
    seat.wrote_for = seat.incarnation
    seat.writers = {
        (peer.worker_id, peer.incarnation) for peer in workers if peer.worker_id is not None and peer.has_blocks
    }


def on_fenced(seat: Seat, writer: Seat, message: Fenced) -> None:
    """Take note that `writer` writes no more for the lives of `seat` up to the one that it names."""
    if writer.worker_id is not None and message.incarnation >= seat.wrote_for:
        seat.writers.discard((writer.worker_id, writer.incarnation))


def is_fence_down(seat: Seat, workers: Collection[Seat]) -> bool:
    """Whether nobody writes into this seat's blocks any more. Who is dead writes nothing."""
    seat.writers &= {
        (peer.worker_id, peer.incarnation) for peer in workers if peer.worker_id is not None and peer.child is not None
    }
    return not seat.writers


def lease_again(segment_descriptor: int, seat: Seat, extents: Sequence[int]) -> None:
    """Write into the segment that its blocks are this worker's, under an epoch that no earlier life knows."""
    assert seat.worker_id is not None
    segment = Segment(segment_descriptor)
    header = SegmentHeader.open(segment.view(0, segment.num_bytes))
    header.lease_extents(extents, seat.worker_id)
    header.close()
    segment.close()
