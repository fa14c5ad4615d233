"""Follows every accepted request to its one end: passes tokens on, retries, aborts, and gives up in time.

Steps 2 to 6 of a request's life as the router sees them. Invariants: an accepted request has exactly one outcome
(finished, aborted, failed) and its client hears it; nothing waits past its `give_up_s`; when no request is in flight
all ledgers are empty. Messages of an older attempt, of a worker that is not the request's, or about an unknown request
change nothing: they are echoes of what has ended.
"""

import logging

from diptych.core.clock import Clock
from diptych.core.errors import (
    InvalidRequestError,
    PeerUnreachableError,
    RequestError,
    RequestTimeoutError,
    UnavailableError,
)
from diptych.core.events import FinishReason
from diptych.core.ids import BlockHash, RequestId
from diptych.core.messages import (
    Abort,
    Aborted,
    Failed,
    FailureKind,
    Finished,
    PeerAddress,
    Submit,
    TokenEvent,
    Tokens,
)
from diptych.core.request import Request
from diptych.router.answer import Answer
from diptych.router.history import History
from diptych.router.in_flight import InFlight, Phase
from diptych.router.placement import Placement, Placer
from diptych.router.ports import LetterBox
from diptych.router.registry import WorkerLife
from diptych.router.settings import RouterSettings

NO_WORKER = "no decode worker takes requests now; try again later, or see `diptych status`"

log = logging.getLogger(__name__)


class Follower:
    """All requests in flight. Owned by the event loop's thread; no method waits."""

    def __init__(  # noqa: PLR0913, PLR0917  the parts that it is made of
        self,
        placer: Placer,
        outbox: LetterBox,
        clock: Clock,
        settings: RouterSettings,
        block_size: int,
        max_model_len: int,
    ) -> None:
        self._placer = placer
        self._outbox = outbox
        self._clock = clock
        self._settings = settings
        self._block_size = block_size
        self._max_model_len = max_model_len
        self._in_flight: dict[RequestId, InFlight] = {}
        self.history = History()

    @property
    def num_in_flight(self) -> int:
        """Requests that hold something or may, on any worker."""
        return len(self._in_flight)

    def start(self, request: Request, hashes: list[BlockHash]) -> InFlight:
        """Send a request to workers.

        Raises: UnavailableError or RequestTimeoutError; then no worker has it. InvalidRequestError: its id is in use.
        """
        if request.request_id in self._in_flight:
            raise InvalidRequestError(f"a request with the id {request.request_id!r} is being served; send another id")
        flight = InFlight(
            request=request,
            prompt_hashes=hashes,
            answer=Answer(request.sampling.max_tokens, request.num_choices),
            placement=self._place(request, hashes, set()),
            give_up_s=request.deadline_s + self._settings.deadline_grace_s,
        )
        self._submit(flight)
        self._in_flight[request.request_id] = flight
        return flight

    def leave(self, flight: InFlight) -> None:
        """Abort a request whose client listens no longer; without effect if it has its outcome."""
        if flight.outcome is not None:
            return
        self._decide(flight, "aborted", UnavailableError("the client has left this answer"))
        self._abort_or_close(flight)

    def stop_choice(self, flight: InFlight, choice: int) -> None:
        """End a choice whose client has all it wants; without effect if the request has its outcome."""
        if flight.outcome is not None:
            return
        flight.answer.stop(choice)
        if choice in flight.open_choices:
            self._send_abort(flight, choice)
        self._on_progress(flight)

    def on_tokens(self, message: Tokens) -> None:
        """Pass on a step's tokens, then its ends."""
        for started in message.started:
            flight = self._in_flight.get(started.request_id)
            if flight is not None and started.attempt == flight.attempt:
                flight.answer.put_start(started.num_cached_tokens, started.prompt_logprobs)
        for event in message.tokens:
            self._on_token(event)
        for finished in message.finished:
            flight = self._find(message, finished.request_id, finished.attempt)
            if flight is not None:
                self._on_finished(flight, finished)
        for failed in message.failed:
            flight = self._find(message, failed.request_id, failed.attempt)
            if flight is not None:
                self._on_failed(flight, failed)
        for aborted in message.aborted:
            flight = self._find(message, aborted.request_id, None)
            if flight is not None:
                self._on_aborted(flight, aborted)

    def _find(self, message: Tokens, request_id: RequestId, attempt: int | None) -> InFlight | None:
        """Return the request whose end this is; None if it is an echo. Only its decode worker may end a request."""
        flight = self._in_flight.get(request_id)
        if flight is None or flight.phase is Phase.END_HELD or attempt not in {None, flight.attempt}:
            return None
        address = flight.placement.decode.address
        is_its_own = (message.worker_id, message.incarnation) == (address.worker_id, address.incarnation)
        return flight if is_its_own else None

    def _on_token(self, event: TokenEvent) -> None:
        # The sender is not compared: a first token that outlived its prefill worker is as good as any, and its decode
        # worker, which was told of it by `Filled`, may never send it again.
        flight = self._in_flight.get(event.request_id)
        if flight is None or event.attempt != flight.attempt or not flight.answer.put_token(event):
            return
        if event.index == 0:
            flight.placement.on_prefilled(event.request_id)
        if (len(flight.request.prompt_token_ids) + event.index) % self._block_size == 0:
            flight.placement.on_block_full(event.request_id)
        if flight.answer.is_settled:
            self._on_progress(flight)

    def _on_finished(self, flight: InFlight, finished: Finished) -> None:
        flight.close_choice(finished)
        flight.answer.put_end(finished.choice, finished.reason, finished.num_output_tokens)
        self._on_progress(flight)

    def _on_progress(self, flight: InFlight) -> None:
        """See what the request still waits for: tokens, the worker's last words, both, or nothing."""
        if flight.outcome is None and flight.answer.is_settled:
            is_all_stop = all(reason is FinishReason.STOP for reason in flight.answer.reasons)
            self._decide(flight, (FinishReason.STOP if is_all_stop else FinishReason.LENGTH).value, None)
            self._wait_for_ends(flight)
        elif not flight.open_choices:
            flight.placement.release(flight.request_id)
            if flight.phase is Phase.ABORTING:
                self._close(flight)
            elif flight.phase is Phase.SERVING:
                flight.phase = Phase.END_HELD
                flight.give_up_s = min(flight.give_up_s, self._clock.now_s() + self._settings.lost_token_timeout_s)

    def _on_failed(self, flight: InFlight, failed: Failed) -> None:
        if flight.phase is Phase.ABORTING:
            self._close(flight, failed)
        elif failed.kind is FailureKind.REFUSED and flight.answer.num_in_order == 0:
            self._retry(flight, failed.message)
        else:
            self._fail(flight, _error_of(failed), failed)

    def _on_aborted(self, flight: InFlight, aborted: Aborted) -> None:
        if flight.phase is Phase.SERVING and not flight.answer.has_ended(aborted.choice):
            error = UnavailableError(f"worker {flight.placement.decode.worker_id} dropped the request; send it again")
            self._fail(flight, error, None)
            return
        flight.close_choice(aborted)
        self._on_progress(flight)

    def on_worker_gone(self, life: WorkerLife) -> None:
        """Move the requests of a life that is over, or end them."""
        for flight in list(self._in_flight.values()):
            if flight.placement.decode is life:
                self._on_decode_gone(flight)
            elif flight.placement.prefill is life and flight.phase is Phase.SERVING and not flight.answer.num_in_order:
                # The decode worker, which is told of the death, takes the prompt back: here only the load moves.
                flight.placement.on_prefill_gone(flight.request_id)

    def _on_decode_gone(self, flight: InFlight) -> None:
        worker_id = flight.placement.decode.worker_id
        if flight.phase is Phase.ABORTING:
            self._close(flight)
        elif flight.phase is Phase.SERVING and flight.answer.num_in_order == 0:
            self._retry(flight, f"worker {worker_id} died before it answered")
        elif flight.phase is Phase.SERVING:
            # Here a running answer would move: prompt and tokens so far to another worker, or adopted where they are.
            error = UnavailableError(f"worker {worker_id} died while answering; send the request again")
            self._fail(flight, error, None)

    def sweep(self) -> None:
        """End every wait whose time has come."""
        now_s = self._clock.now_s()
        for flight in [flight for flight in self._in_flight.values() if now_s >= flight.give_up_s]:
            worker_id = flight.placement.decode.worker_id
            match flight.phase:
                case Phase.SERVING:
                    self._decide(
                        flight, "failed", RequestTimeoutError("the deadline passed before the answer was complete")
                    )
                    self._abort_or_close(flight)
                case Phase.END_HELD:
                    lost = UnavailableError("a part of the answer was lost with a worker; send the request again")
                    self._fail(flight, lost, None)
                case Phase.ABORTING:
                    log.warning("%s did not confirm the end of %s in time", worker_id, flight.request_id)
                    self._close(flight)

    def stop(self) -> None:
        """End all requests: nobody will receive their messages any more."""
        for flight in list(self._in_flight.values()):
            if flight.outcome is None:
                self._decide(flight, "failed", UnavailableError("the server is shutting down; send the request again"))
                self._abort_or_close(flight)
            self._close(flight)

    def _place(self, request: Request, hashes: list[BlockHash], excluded: set[PeerAddress]) -> Placement:
        """Choose workers. Raises: RequestTimeoutError, UnavailableError."""
        if self._clock.now_s() >= request.deadline_s:
            raise RequestTimeoutError("the deadline passed before a worker took the request")
        num_prompt_tokens, max_tokens = len(request.prompt_token_ids), request.sampling.max_tokens
        num_answer_tokens = min(self.history.mean_output_tokens, max_tokens) * request.num_choices
        num_most_tokens = min(num_prompt_tokens + max_tokens, self._max_model_len)
        placement = self._placer.try_place(num_prompt_tokens, hashes, excluded, num_answer_tokens, num_most_tokens)
        if placement is None:
            raise UnavailableError(NO_WORKER)
        return placement

    def _submit(self, flight: InFlight) -> None:
        """Send a placed request, elsewhere if its worker cannot be reached. Raises: as `_move`."""
        while True:
            prefill = flight.placement.prefill
            submit = Submit(
                request=flight.request, attempt=flight.attempt, prefill=None if prefill is None else prefill.address
            )
            try:
                self._outbox.send(flight.placement.decode.address.endpoint, submit)
            except PeerUnreachableError as error:
                self._move(flight, str(error))
            else:
                flight.routed_s = self._clock.now_s()
                flight.placement.assign(flight.request_id, flight.request.num_choices)
                return

    def _move(self, flight: InFlight, reason: str) -> None:
        """Place a request on a worker that has not had it. Raises: RequestTimeoutError, UnavailableError."""
        worker_id = flight.placement.decode.worker_id
        log.info("attempt %d at %s on %s came to nothing: %s", flight.attempt, flight.request_id, worker_id, reason)
        flight.refused_by.add(flight.placement.decode.address)
        if flight.attempt + 1 >= self._settings.max_attempts:
            raise UnavailableError(f"no worker took the request in {flight.attempt + 1} attempts; the last: {reason}")
        try:
            flight.placement = self._place(flight.request, flight.prompt_hashes, flight.refused_by)
        except UnavailableError:
            raise UnavailableError(
                f"{reason}, and no other decode worker takes requests now; try again later"
            ) from None
        flight.attempt += 1

    def _retry(self, flight: InFlight, reason: str) -> None:
        """Make another attempt at a request of which no token has come; fail it if there is none left."""
        flight.placement.release(flight.request_id)
        flight.answer.restart()
        flight.reopen()
        try:
            self._move(flight, reason)
            self._submit(flight)
        except RequestError as error:
            self._fail(flight, error, None)

    def _abort_or_close(self, flight: InFlight) -> None:
        """Have the decode worker free what the request holds; if it has said that it holds nothing, close."""
        if flight.phase is Phase.END_HELD:
            self._close(flight)
            return
        self._send_abort(flight, None)
        self._wait_for_ends(flight)

    def _wait_for_ends(self, flight: InFlight) -> None:
        """Wait a while for the decode worker to say that the request holds nothing any more."""
        if flight.open_choices:
            flight.phase = Phase.ABORTING
            flight.give_up_s = self._clock.now_s() + self._settings.abort_timeout_s
        else:
            self._close(flight)

    def _send_abort(self, flight: InFlight, choice: int | None) -> None:
        """Tell the decode worker that nobody waits for this choice (None: for any)."""
        abort = Abort(request_id=flight.request_id, choice=choice)
        try:
            self._outbox.send(flight.placement.decode.address.endpoint, abort)
        except PeerUnreachableError as error:
            log.warning("%s was not told to abort %s: %s", flight.placement.decode.worker_id, flight.request_id, error)

    def _decide(self, flight: InFlight, outcome: str, error: RequestError | None) -> None:
        """Fix a request's one outcome, and let its client hear of it."""
        if flight.outcome is not None:
            raise AssertionError(f"{flight.request_id} has ended as {flight.outcome}, it cannot end as {outcome}")
        flight.outcome = outcome
        if error is not None:
            flight.answer.fail(error)

    def _fail(self, flight: InFlight, error: RequestError, failed: Failed | None) -> None:
        self._decide(flight, "failed", error)
        self._close(flight, failed)

    def _close(self, flight: InFlight, failed: Failed | None = None) -> None:
        """Forget a request that has its outcome and holds nothing on any worker."""
        flight.placement.release(flight.request_id)
        if self._in_flight.pop(flight.request_id, None) is None:
            return
        self.history.add(flight.to_record(failed, self._clock.now_s()))


def _error_of(failed: Failed) -> RequestError:
    """Return what the client hears of a worker's failure."""
    match failed.kind:
        case FailureKind.INVALID:
            return InvalidRequestError(failed.message)
        case FailureKind.TIMEOUT:
            return RequestTimeoutError(failed.message)
        case FailureKind.REFUSED | FailureKind.ERROR:
            return UnavailableError(failed.message)
