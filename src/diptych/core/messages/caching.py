"""What a worker has in its prefix cache, for routers that follow it."""

from typing import Annotated

import msgspec
from msgspec import Meta

from diptych.core.bounds import HASH, MAX_SNAPSHOT_PIECE_BLOCKS, NAME, ROUTER, Count, Ordinal
from diptych.core.ids import FIRST_ROUTER, BlockHash, RouterId, WorkerId
from diptych.core.messages.peers import Message


class CacheSnapshotWanted(Message, frozen=True, kw_only=True):
    """I do not know what is in your prefix cache: tell me all of it (`CacheSnapshot`)."""

    router: Annotated[RouterId, ROUTER] = FIRST_ROUTER
    """Who asks."""


class CacheChange(msgspec.Struct, frozen=True, kw_only=True):
    """Which blocks entered and left a worker's prefix cache."""

    sequence: Ordinal
    """Counts a worker's changes from 1; a gap means that some were lost."""
    stored: list[Annotated[BlockHash, HASH]]
    """Each behind the block before it, if that is new too."""
    removed: list[Annotated[BlockHash, HASH]]
    """They left before others were stored: a block may leave and come back."""
    cleared: bool = False
    """Whether all that was there has left."""


class CacheSnapshot(Message, frozen=True, kw_only=True):
    """A piece of all that is in a worker's prefix cache. The pieces of a snapshot are sent in order and at once."""

    worker_id: Annotated[WorkerId, NAME]
    incarnation: Count
    snapshot: Ordinal
    """Counts a worker's snapshots: pieces of two do not fit together, even if they are as of the same change."""
    sequence: Count
    """Of the last change that it includes; 0: there was none."""
    piece: Count
    """From 0."""
    num_pieces: Ordinal
    stored: Annotated[list[Annotated[BlockHash, HASH]], Meta(max_length=MAX_SNAPSHOT_PIECE_BLOCKS)]
    """Each behind the block before it."""
