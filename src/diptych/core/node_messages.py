"""What the agent of a machine (launch/node.py) and the router say to each other, over one connection that agents open.

    agent  --Knock-->  router      here I am; what do you serve?
    agent  <--Terms--  router      this: the same settings for all        (or `TurnedAway`)
    agent  --Join-->   router      my workers have loaded it              (or `TurnedAway`)
    agent  <--Welcome- router      you are in; this is your session
    agent  --NodeAlive--> router   every half second; the answer, `RouterAlive`, also tells the router's clock
    agent  <--NodeLetter--> router     messages of and for workers
    agent  --Leaving--> router     nothing new, please; `Retire` comes as workers have nothing left to do

Letters belong to a session. One that is over (nothing was heard for too long, the connection was made anew, a letter
was lost) never comes back: its requests go on elsewhere, the machine's workers drop what they had, and it joins anew.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from diptych.core.bounds import ENDPOINT, NAME, NODE_NAME, Count, Moment, Ordinal, Seconds
from diptych.core.cost_model import CostModel
from diptych.core.ids import NodeId, WorkerId
from diptych.core.messages import Message, Role

NODE_ALIVE_INTERVAL_S = 0.5
Text = Annotated[str, Meta(max_length=1000)]


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """What all machines must agree on, besides settings."""

    model_key: Text
    """Names the weights."""
    fingerprint: Text
    """Of the KV layout, its precision included."""
    engine: Text
    """For people: such as `openvino f32 KV`."""
    block_size: Ordinal
    max_model_len: Ordinal


# Agent to router


class Knock(Message, frozen=True, kw_only=True):
    """A machine that is not in, or not any more, wants to know what is served here."""

    node: Annotated[NodeId, NODE_NAME]
    boot: Annotated[str, NAME]
    """Made up by each start of an agent: two machines of one name are found out by it."""
    version: Annotated[str, NAME]
    sent_s: Moment
    """On the sender's clock; comes back in the answer."""


class Join(Message, frozen=True, kw_only=True):
    """A machine's workers have been told to serve."""

    node: Annotated[NodeId, NODE_NAME]
    boot: Annotated[str, NAME]
    version: Annotated[str, NAME]
    layout: Layout
    workers: Annotated[dict[WorkerId, Role], Meta(min_length=1, max_length=1024)]
    costs: dict[WorkerId, CostModel]
    num_cores: Count
    segment_bytes: Count


class NodeAlive(Message, frozen=True, kw_only=True):
    """The machine is in, as far as it knows."""

    node: Annotated[NodeId, NODE_NAME]
    session: Count
    sent_s: Moment
    """On the sender's clock; comes back in the answer."""
    round_trip_s: Seconds
    """The shortest of late."""
    offset_s: float
    """By how much the router's clock is ahead."""


class NodeLetter(Message, frozen=True, kw_only=True):
    """A message of or for a worker, with its header (wire/frame.py)."""

    session: Count
    to: Annotated[str, ENDPOINT] | None
    """Whose inbox; None: the router's."""
    frame: bytes


class Leaving(Message, frozen=True, kw_only=True):
    """The machine wants to end: give its workers nothing new, and have each ended when it has nothing left to do."""

    node: Annotated[NodeId, NODE_NAME]
    session: Count
    timeout_s: Seconds
    """After which what is left goes on elsewhere."""


class Left(Message, frozen=True, kw_only=True):
    """The machine's workers have ended, all of them."""

    node: Annotated[NodeId, NODE_NAME]
    session: Count


# Router to agent


class Terms(Message, frozen=True, kw_only=True):
    """What is served here."""

    settings: dict[str, str | int | float | bool | None]
    """Of `diptych.core.config.ServeConfig`: those that all machines share."""
    layout: Layout
    transfer_secret: Text
    """What proves to other machines' workers that one is of this cluster: hex digits."""
    sent_s: Moment
    """As in `Knock`."""
    now_s: Moment
    """On the router's clock."""
    frontend: Count
    """Which life of the frontend this is."""


class TurnedAway(Message, frozen=True, kw_only=True):
    """You cannot join."""

    reason: Text
    is_final: bool
    """Whether nothing will change by trying again."""


class Welcome(Message, frozen=True, kw_only=True):
    """You are in."""

    session: Ordinal


class RouterAlive(Message, frozen=True, kw_only=True):
    """The answer to `NodeAlive`."""

    session: Count
    sent_s: Moment
    now_s: Moment
    """On the router's clock."""


class SessionOver(Message, frozen=True, kw_only=True):
    """I do not know that session, or not any more: knock again."""

    session: Count


class WorkerWanted(Message, frozen=True, kw_only=True):
    """An operator, or the router itself, wants a worker's process to end, or to start."""

    session: Count
    worker_id: Annotated[WorkerId, NAME]
    action: Literal["retire", "replace", "revive"]
    """End it, end it and start a new one, start one that is down."""
    incarnation: Count = 0
    """Which life is to end."""


class NodeWanted(Message, frozen=True, kw_only=True):
    """An operator wants the machine to leave, as after SIGTERM."""

    session: Count


FromNode = Knock | Join | NodeAlive | NodeLetter | Leaving | Left
ToNode = Terms | TurnedAway | Welcome | RouterAlive | SessionOver | NodeLetter | WorkerWanted | NodeWanted
