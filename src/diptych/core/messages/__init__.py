"""Everything that processes say to each other, a module a topic. One way, one message a frame, tagged by type.

Where a server has several routers, what comes of a request goes to the router that asked, all else to all of them, and
they tell each other what they have placed (`PlacedLoads`).

The conversation about one request, in place (prefill and decode on one machine):

    router  --Submit-->  decode  --Grant-->  prefill
    router  <-----------Tokens (the first)-- prefill  --Filled-->  decode
    router  <--Tokens (one message a step for all sequences)------ decode

Only the decode worker ends a request (`Finished`, `Failed`). A message of an older attempt or epoch is dropped by
whoever gets it. Where another worker has more of a prompt in its cache, the decode worker may copy it first:

    decode  --Borrow-->  other  --Lent-->  decode (copies)  --Returned-->  other

When a worker has died, `WorkerExited` goes to the router, `PeerGone` to the other workers, and its
requests are submitted anew with what they have come to.
"""

from diptych.core.messages.answers import (
    Aborted,
    Begun,
    Failed,
    FailureKind,
    Finished,
    Loading,
    Started,
    TokenEvent,
    TokenRun,
    Tokens,
)
from diptych.core.messages.caching import CacheChange, CacheSnapshot, CacheSnapshotWanted
from diptych.core.messages.handover import Filled, Grant, GrantEnded, GrantHeld, Pushed, Remind, Revoke
from diptych.core.messages.lending import Borrow, Lent, Returned
from diptych.core.messages.peers import PROTOCOL_VERSION, Letter, Message, PeerAddress, Role, WorkerState
from diptych.core.messages.profiling import SampleStacks, StackSamples
from diptych.core.messages.remains import GrantRemains, Remains, RequestRemains, SubmitRemains
from diptych.core.messages.requests import Abort, CopyOrder, FormerAttempt, FrontendGone, PeerGone, Submit
from diptych.core.messages.routers import Drain, PlacedLoads, PlacedLoadsWanted, RequestLoad
from diptych.core.messages.status import HEARTBEAT_INTERVAL_S, HealthState, Heartbeat, WorkerExited, WorkerStatus

__all__ = [
    "HEARTBEAT_INTERVAL_S",
    "PROTOCOL_VERSION",
    "Abort",
    "Aborted",
    "Begun",
    "Borrow",
    "CacheChange",
    "CacheSnapshot",
    "CacheSnapshotWanted",
    "CopyOrder",
    "Drain",
    "Failed",
    "FailureKind",
    "Filled",
    "Finished",
    "FormerAttempt",
    "FrontendGone",
    "Grant",
    "GrantEnded",
    "GrantHeld",
    "GrantRemains",
    "HealthState",
    "Heartbeat",
    "Lent",
    "Letter",
    "Loading",
    "Message",
    "PeerAddress",
    "PeerGone",
    "PlacedLoads",
    "PlacedLoadsWanted",
    "Pushed",
    "Remains",
    "Remind",
    "RequestLoad",
    "RequestRemains",
    "Returned",
    "Revoke",
    "Role",
    "SampleStacks",
    "StackSamples",
    "Started",
    "Submit",
    "SubmitRemains",
    "ToRouter",
    "ToWorker",
    "TokenEvent",
    "TokenRun",
    "Tokens",
    "WorkerExited",
    "WorkerState",
    "WorkerStatus",
]

ToWorker = (
    Submit
    | Abort
    | PeerGone
    | FrontendGone
    | CacheSnapshotWanted
    | SampleStacks
    | Grant
    | Revoke
    | Remind
    | Filled
    | GrantEnded
    | GrantHeld
    | Pushed
    | Borrow
    | Lent
    | Returned
)
ToRouter = (
    Tokens | CacheSnapshot | Heartbeat | StackSamples | WorkerExited | FrontendGone | PlacedLoads | PlacedLoadsWanted
)
