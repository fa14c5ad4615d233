"""Has grammars tried out in a process of their own. The step before a request with a grammar is submitted.

Invariants: no grammar reaches a worker that has not been compiled before, within limits on computing time, memory and
stack, by a process whose death costs nothing but a new one; of each tenant one grammar is tried at a time, so nobody's
wait grows with how many another one sends.
"""

import asyncio
import contextlib
import hashlib
import logging
import sys
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import TypeVar
from weakref import WeakValueDictionary

import msgspec

from diptych.core.errors import InternalError, InvalidRequestError, OverloadedError
from diptych.frontend.grammar_check.child import LENGTH_BYTES, Ready, TokensOfModel, Trial, Verdict, write_frame
from diptych.models.vocabulary import Vocabulary

log = logging.getLogger(__name__)
Answer = TypeVar("Answer", bound=msgspec.Struct)

CHILD_MODULE = "diptych.frontend.grammar_check.child"
START_TIMEOUT_S = 30.0
TRIAL_TIMEOUT_S = 10.0
"""Of waiting, where computing is slow because others use the cores."""
MAX_WAITING = 256
MAX_VERDICTS = 1024
TOO_COMPLEX = "the grammar cannot be used: it is too complex, and takes more time or memory than a request may have"


class _ChildDiedError(Exception):
    """The process has ended instead of answering."""


class GrammarChecker:
    """Says which grammars may be used. Starts its process for the first one. Owned by the event loop."""

    def __init__(self, vocabulary: Vocabulary, eos_token_ids: Iterable[int]) -> None:
        self._tokens = TokensOfModel(
            vocabulary.token_bytes, sorted(vocabulary.special_token_ids), sorted(eos_token_ids)
        )
        self._verdicts: OrderedDict[bytes, Verdict] = OrderedDict()
        self._turn = asyncio.Lock()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._num_waiting = 0
        self._child: asyncio.subprocess.Process | None = None

    async def check(self, grammar: str, tenant: str) -> None:
        """Return if a grammar may be used.

        Raises: InvalidRequestError that says why not; OverloadedError if too many others are waiting.
        """
        # Named with the tenant: whether others have sent a grammar is not to be found out by how long it takes.
        name = hashlib.blake2b(f"{tenant}\0{grammar}".encode("utf-8", "surrogatepass")).digest()
        verdict = self._verdicts.get(name)
        if verdict is None:
            async with self._waiting(tenant):
                verdict = self._verdicts.get(name) or await self._try(grammar)
            self._verdicts[name] = verdict
            while len(self._verdicts) > MAX_VERDICTS:
                self._verdicts.popitem(last=False)
        self._verdicts.move_to_end(name)
        if verdict.fault is not None:
            raise InvalidRequestError(verdict.fault)

    @asynccontextmanager
    async def _waiting(self, tenant: str) -> AsyncIterator[None]:
        if self._num_waiting >= MAX_WAITING:
            raise OverloadedError("too many grammars are waiting to be checked; try again later")
        self._num_waiting += 1
        try:
            async with self._turns.setdefault(tenant, asyncio.Lock()), self._turn:
                yield
        finally:
            self._num_waiting -= 1

    async def _try(self, grammar: str) -> Verdict:
        try:
            child = self._child or await self._start()
        except (_ChildDiedError, TimeoutError, OSError) as error:
            await self.close()
            log.error("the process that checks grammars does not start: %s", type(error).__name__)  # noqa: TRY400
            raise InternalError("the server cannot check grammars now") from None
        except BaseException:
            await self.close()  # its client has left while it was starting: it would say that it is ready to the next
            raise
        try:
            async with asyncio.timeout(TRIAL_TIMEOUT_S):
                return await _ask(child, Trial(grammar), Verdict)
        except (_ChildDiedError, TimeoutError):
            await self.close()
            return Verdict(TOO_COMPLEX)
        except BaseException:
            await self.close()  # its answer would be taken for that to the next grammar
            raise

    async def _start(self) -> asyncio.subprocess.Process:
        self._child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            CHILD_MODULE,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,  # a crash may name the grammar
        )
        async with asyncio.timeout(START_TIMEOUT_S):
            await _ask(self._child, self._tokens, Ready)
        return self._child

    async def close(self) -> None:
        """End the process, if there is one; the next grammar starts another."""
        child, self._child = self._child, None
        if child is not None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()


async def _ask(child: asyncio.subprocess.Process, question: msgspec.Struct, kind: type[Answer]) -> Answer:
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write(write_frame(question))
        await child.stdin.drain()
        length = int.from_bytes(await child.stdout.readexactly(LENGTH_BYTES), "big")
        return msgspec.msgpack.decode(await child.stdout.readexactly(length), type=kind)
    except (OSError, asyncio.IncompleteReadError):
        raise _ChildDiedError from None
