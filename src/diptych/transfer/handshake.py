"""Before a block moves: is the peer of this cluster, and does it compute what this worker computes?

Each proves to the other that it knows the cluster's secret, over numbers that are new each time. Then all that two
workers must have in common is compared, fact by fact, and what differs is named.
"""

import hashlib
import hmac
import secrets
from dataclasses import dataclass

import msgspec

from diptych.core.errors import TransferError, TransferRefusedError
from diptych.core.ids import NodeId, WorkerId
from diptych.transfer.frames import Challenge, Facts, Hello, Refused, Welcome
from diptych.transfer.tcp import Connection

TRANSFER_PROTOCOL = 3
NONCE_BYTES = 32

_NAMES = {
    "protocol": "the version of the transfer protocol",
    "diptych": "the version of Diptych",
    "model_key": "the model",
    "engine": "the engine or its KV precision",
    "block_size": "the tokens a block",
    "block_bytes": "the bytes a block",
    "layout": "the KV layout",
}
"""In the order in which differences are told: one that explains others comes first."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a worker says of itself, and how it proves that."""

    worker_id: WorkerId
    incarnation: int
    node: NodeId
    facts: Facts
    secret: bytes


def find_difference(ours: Facts, theirs: Facts) -> str | None:
    """Return in which fact two workers differ, in words; None: in none."""
    for field, name in _NAMES.items():
        mine, other = getattr(ours, field), getattr(theirs, field)
        if mine != other:
            return f"{name} differs: {mine} here, {other} there"
    return None


def greet(
    connection: Connection,
    identity: Identity,
    *,
    num_blocks: int,
    transports: dict[str, bytes],
) -> str:
    """Introduce this worker to a receiver; return the name of the transport that it has chosen.

    Raises: TransferRefusedError if it does not agree, or is not of this cluster; TransferError if it does not answer.
    """
    challenge = connection.receive()
    if not isinstance(challenge, Challenge):
        raise TransferRefusedError("what listens there is no receiver of KV")
    nonce = secrets.token_bytes(NONCE_BYTES)
    hello = Hello(
        worker_id=identity.worker_id,
        incarnation=identity.incarnation,
        node=identity.node,
        facts=identity.facts,
        num_blocks=num_blocks,
        transports=transports,
        nonce=nonce,
        proof=bytes(32),
    )
    proof = _proof(identity.secret, b"sender", challenge.nonce, nonce, _unproven(hello))
    connection.send(msgspec.structs.replace(hello, proof=proof))
    answer = connection.receive()
    if isinstance(answer, Refused):
        raise TransferRefusedError(answer.reason)
    expected = _proof(identity.secret, b"receiver", challenge.nonce, nonce, b"")
    if not isinstance(answer, Welcome) or not hmac.compare_digest(answer.proof, expected):
        raise TransferRefusedError("who listens there does not know this cluster's secret")
    return answer.transport


class Admission:
    """The receiver's side of a handshake."""

    def __init__(self, connection: Connection, identity: Identity) -> None:
        self._connection = connection
        self._identity = identity
        self._nonce = secrets.token_bytes(NONCE_BYTES)

    def hear(self) -> Hello:
        """Return who the sender is, if it is of this cluster and computes the same; else tell it why not.

        Raises: TransferRefusedError, TransferError.
        """
        self._connection.send(Challenge(nonce=self._nonce))
        hello = self._connection.receive()
        if not isinstance(hello, Hello):
            raise TransferError("a stranger has said something else than hello")
        proof = _proof(self._identity.secret, b"sender", self._nonce, hello.nonce, _unproven(hello))
        if not hmac.compare_digest(hello.proof, proof):
            self._refuse("the secret of the cluster differs: start all its workers from the same keys")
        difference = find_difference(self._identity.facts, hello.facts)
        if difference is not None:
            self._refuse(f"{self._identity.worker_id} and {hello.worker_id} cannot share KV: {difference}")
        return hello

    def welcome(self, hello: Hello, transport: str) -> None:
        """Tell the sender that all is well. Raises: TransferError."""
        proof = _proof(self._identity.secret, b"receiver", self._nonce, hello.nonce, b"")
        self._connection.send(Welcome(transport=transport, proof=proof))

    def _refuse(self, reason: str) -> None:
        self._connection.send(Refused(reason=reason))
        raise TransferRefusedError(reason)


def _unproven(hello: Hello) -> bytes:
    return msgspec.msgpack.encode(msgspec.structs.replace(hello, proof=bytes(32)))


def _proof(secret: bytes, *parts: bytes) -> bytes:
    text = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return hmac.new(secret, text, hashlib.sha256).digest()
