"""Which machines' workers may work on one request together. Pure."""

from diptych.core.ids import NodeId


def can_hand_over(reader: NodeId, owner: NodeId) -> bool:
    """Tell whether a worker of one machine may read a prompt into blocks of a worker of another.

    A reader computes in the very blocks that it was granted, so both must map the same memory.
    """
    return reader == owner


def is_in_reach(one: NodeId, other: NodeId) -> bool:
    """Tell whether workers of two machines may have to do with each other at all."""
    return can_hand_over(one, other) or can_hand_over(other, one) or can_copy(one, other) or can_copy(other, one)


def can_copy(source: NodeId, owner: NodeId) -> bool:
    """Tell whether a worker of one machine may copy blocks from the cache of a worker of another, within its memory."""
    return source == owner
