"""Follows every accepted request to its one end: passes tokens on, retries, aborts, and gives up in time.

Steps 2 to 6 of a request's life as the router sees them. Invariants: an accepted request has exactly one outcome
(finished, aborted, failed) and its client hears it; nothing waits past its `give_up_s`; when no request is in flight
all ledgers are empty. Messages of an older attempt, of a worker that is not the request's, or about an unknown request
change nothing: they are echoes of what has ended.
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice

from diptych.core.clock import Clock
from diptych.core.errors import (
    InternalError,
    InvalidRequestError,
    PeerUnreachableError,
    RequestError,
    RequestTimeoutError,
    UnavailableError,
)
from diptych.core.events import FinishReason, RequestRecord
from diptych.core.ids import BlockHash, RequestId
from diptych.core.logs import about
from diptych.core.messages import (
    Abort,
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
from diptych.core.request import Request
from diptych.policy.admission import retry_after_s
from diptych.router.answer import Answer
from diptych.router.history import History
from diptych.router.in_flight import InFlight, Phase
from diptych.router.mover import Mover
from diptych.router.placement import Placer
from diptych.router.ports import LetterBox, Observer
from diptych.router.registry import WorkerLife
from diptych.router.settings import RouterSettings

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
        observer: Observer | None = None,
    ) -> None:
        self._observer = observer
        self._outbox = outbox
        self._clock = clock
        self._settings = settings
        self._block_size = block_size
        self._in_flight: dict[RequestId, InFlight] = {}
        self._homeless: dict[RequestId, InFlight] = {}
        self.history = History()
        self._mover = Mover(placer, outbox, clock, settings, self.history, max_model_len)

    @property
    def num_in_flight(self) -> int:
        """Requests that hold something or may, on any worker."""
        return len(self._in_flight)

    def unfinished(self, most: int) -> list[RequestRecord]:
        """Return how far the requests in flight have come, those that arrived first, `most` of them."""
        return [flight.to_unfinished_record() for flight in islice(self._in_flight.values(), most)]

    @property
    def num_unread(self) -> int:
        """Of those, the ones whose clients still wait for the first token."""
        return sum(flight.first_token_s is None and flight.outcome is None for flight in self._in_flight.values())

    def start(self, request: Request, hashes: list[BlockHash]) -> InFlight:
        """Send a request to workers, or let it wait for one to come back.

        Raises: UnavailableError or RequestTimeoutError; then no worker has it. InvalidRequestError: its id is in use.
        """
        if request.request_id in self._in_flight:
            raise InvalidRequestError(f"a request with the id {request.request_id!r} is being served; send another id")
        last_moment_s = request.deadline_s + self._settings.deadline_grace_s
        flight = InFlight(
            request=request,
            prompt_hashes=hashes,
            answer=Answer(request.sampling.max_tokens, request.num_choices),
            last_moment_s=last_moment_s,
            give_up_s=last_moment_s,
        )
        flight.give_up_s = self._mover.homeless_until_s(flight)
        if not self._mover.try_settle(flight):
            self._homeless[flight.request_id] = flight
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
        for loading in message.loading:
            flight = self._of_attempt(loading)
            if flight is not None and flight.placement is not None:
                flight.placement.on_found(loading.request_id, loading.num_found_tokens)
        self._on_begun(message.begun)
        for started in message.started:
            flight = self._of_attempt(started)
            if flight is not None:
                flight.answer.put_start(started.num_cached_tokens, started.prompt_logprobs, started.num_loaded_tokens)
        now_s = self._clock.now_s()
        for event in message.tokens:
            self._on_token(event, now_s)
        for run in message.runs:
            self._on_run(run, now_s)
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

    def _on_begun(self, prompts: Sequence[Begun]) -> None:
        for begun in prompts:
            flight = self._of_attempt(begun)
            if flight is not None and flight.prefill_started_s is None:
                flight.prefill_started_s = begun.prefill_started_s

    def _of_attempt(self, news: Loading | Begun | Started | TokenEvent | TokenRun) -> InFlight | None:
        """Return the request that this is about; None if it has ended, or is at another attempt by now."""
        flight = self._in_flight.get(news.request_id)
        return flight if flight is not None and news.attempt == flight.attempt else None

    def _find(self, message: Tokens, request_id: RequestId, attempt: int | None) -> InFlight | None:
        """Return the request whose end this is; None if it is an echo. Only its decode worker may end a request."""
        flight = self._in_flight.get(request_id)
        if flight is None or flight.phase is Phase.END_HELD or attempt not in {None, flight.attempt}:
            return None
        address = None if flight.owner is None else flight.owner.address
        if address is None or (message.worker_id, message.incarnation) != (address.worker_id, address.incarnation):
            return None
        return flight

    def _on_token(self, event: TokenEvent, now_s: float) -> None:
        # The sender is not compared: a first token that outlived its prefill worker is as good as any, and its decode
        # worker, which was told of it by `Filled`, may never send it again.
        flight = self._of_attempt(event)
        if flight is not None and flight.answer.put_token(event):
            self._on_news(flight, event.choice, event.index, 1, now_s)

    def _on_run(self, run: TokenRun, now_s: float) -> None:
        flight = self._of_attempt(run)
        if flight is None:
            return
        num_new = flight.answer.put_run(run)
        if num_new:
            self._on_news(flight, run.choice, run.index + len(run.token_ids) - num_new, num_new, now_s)

    def _on_news(self, flight: InFlight, choice: int, index: int, num_tokens: int, now_s: float) -> None:
        """Go on after tokens of a choice that are new, of which the first has this index."""
        self.history.on_tokens(num_tokens, is_first=flight.first_token_s is None)
        if flight.first_token_s is None:
            flight.first_token_s = now_s
        elif flight.second_token_s is None and index:
            flight.second_token_s = now_s
        if self._observer is not None:
            last_s = flight.token_s.get(choice)
            flight.token_s[choice] = now_s
            self._observer.on_tokens(num_tokens, None if last_s is None else now_s - last_s)
        if flight.placement is not None:
            # The first token of an attempt, be it the answer's first or not, says that the prompt has been read.
            flight.placement.on_tokens(flight.request_id)
            position = len(flight.request.prompt_token_ids) + index
            num_full = (position + num_tokens - 1) // self._block_size - (position - 1) // self._block_size
            if num_full:
                flight.placement.on_blocks_full(flight.request_id, num_full, self._block_size)
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
        elif not flight.open_choices and flight.placement is not None:
            flight.placement.release(flight.request_id)
            if flight.phase is Phase.ABORTING:
                self._close(flight)
            elif flight.phase is Phase.SERVING:
                flight.phase = Phase.END_HELD
                flight.give_up_s = min(flight.give_up_s, self._clock.now_s() + self._settings.lost_token_timeout_s)

    def _on_failed(self, flight: InFlight, failed: Failed) -> None:
        if flight.phase is Phase.ABORTING:
            self._close(flight, failed)
        elif failed.kind is FailureKind.REFUSED:
            self._make_homeless(flight, self._mover.on_refused, failed.message)
            self.settle_homeless()
        elif failed.kind is FailureKind.QUEUED and flight.answer.num_in_order:
            # Its prompt was read in the very moment in which its owner gave it up: it has had its turn.
            self._on_owner_gone(flight, failed.message, is_orderly=True)
            self.settle_homeless()
        else:
            self._fail(flight, _error_of(failed, retry_after_s(self.history.mean_request_s)), failed)

    def _on_aborted(self, flight: InFlight, aborted: Aborted) -> None:
        if flight.phase is Phase.SERVING and not flight.answer.has_ended(aborted.choice):
            error = UnavailableError(f"worker {_owner_id(flight)} dropped the request; send it again")
            self._fail(flight, error, None)
            return
        flight.close_choice(aborted)
        self._on_progress(flight)

    def on_worker_gone(self, life: WorkerLife, *, is_orderly: bool = False) -> None:
        """Move the requests of a life that is over: it died or (`is_orderly`) did as it was told."""
        fate = "was taken out of service" if is_orderly else "is out of reach" if life.is_lost else "died"
        reason = f"worker {life.worker_id} {fate}"
        for flight in list(self._in_flight.values()):
            if flight.owner is life:
                self._on_owner_gone(flight, reason, is_orderly=is_orderly)
            elif flight.owner is not None and flight.phase is Phase.SERVING and not flight.answer.num_in_order:
                assert flight.placement is not None
                if flight.placement.prefill is life:
                    # The decode worker, which is told of the death, takes the prompt back: here only the load moves.
                    flight.placement.on_prefill_gone(flight.request_id)
        self.settle_homeless()

    def _on_owner_gone(self, flight: InFlight, reason: str, *, is_orderly: bool) -> None:
        if flight.phase is Phase.ABORTING:
            self._close(flight)
        elif flight.phase is Phase.SERVING:
            self._make_homeless(flight, partial(self._mover.on_worker_gone, is_orderly=is_orderly), reason)

    def settle_homeless(self) -> None:
        """Send requests without a worker to one, as far as there is any; called whenever one may have become ready."""
        for flight in list(self._homeless.values()):
            try:
                if self._mover.try_settle(flight):
                    del self._homeless[flight.request_id]
            except RequestError as error:
                self._fail(flight, error, None)

    def _make_homeless(self, flight: InFlight, note: Callable[[InFlight, str], None], reason: str) -> None:
        """Let a request leave its worker, as `note` takes down; `settle_homeless` is to follow."""
        try:
            note(flight, reason)
        except RequestError as error:
            self._fail(flight, error, None)
        else:
            self._homeless[flight.request_id] = flight

    def sweep(self) -> None:
        """End every wait whose time has come."""
        now_s = self._clock.now_s()
        for flight in [flight for flight in self._in_flight.values() if now_s >= flight.give_up_s]:
            match flight.phase:
                case Phase.SERVING:
                    self._decide(
                        flight, "failed", RequestTimeoutError("the deadline passed before the answer was complete")
                    )
                    self._abort_or_close(flight)
                case Phase.HOMELESS:
                    self._fail(flight, self._mover.why_homeless(flight), None)
                case Phase.END_HELD:
                    self._make_homeless(flight, self._mover.on_answer_torn, "a part of the answer was lost")
                case Phase.ABORTING:
                    text = "%s did not confirm the end of %s in time"
                    log.warning(text, _owner_id(flight), flight.request_id, extra=about(request_id=flight.request_id))
                    self._close(flight)
        self.settle_homeless()

    def stop(self) -> None:
        """End all requests: nobody will receive their messages any more."""
        for flight in list(self._in_flight.values()):
            if flight.outcome is None:
                self._decide(flight, "failed", UnavailableError("the server is shutting down; send the request again"))
                self._abort_or_close(flight)
            self._close(flight)

    def _abort_or_close(self, flight: InFlight) -> None:
        """Have the decode worker free what the request holds; if there is none, or it holds nothing, close."""
        if flight.phase in {Phase.END_HELD, Phase.HOMELESS}:
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
        if flight.owner is None:
            return
        abort = Abort(request_id=flight.request_id, choice=choice, router=self._settings.router)
        try:
            self._outbox.send(flight.owner.address.endpoint, abort)
        except PeerUnreachableError as error:
            text = "%s was not told to abort %s: %s"
            log.warning(text, _owner_id(flight), flight.request_id, error, extra=about(request_id=flight.request_id))

    def _decide(self, flight: InFlight, outcome: str, error: RequestError | None) -> None:
        """Fix a request's one outcome, and let its client hear of it."""
        if flight.outcome is not None:
            raise AssertionError(f"{flight.request_id} has ended as {flight.outcome}, it cannot end as {outcome}")
        flight.outcome = outcome
        if error is not None:
            flight.answer.fail(error)
        if error is not None and outcome == "failed" and self._observer is not None:
            self._observer.on_rejected(error, was_taken=True)

    def _fail(self, flight: InFlight, error: RequestError, failed: Failed | None) -> None:
        self._decide(flight, "failed", error)
        self._close(flight, failed)

    def _close(self, flight: InFlight, failed: Failed | None = None) -> None:
        """Forget a request that has its outcome and holds nothing on any worker."""
        if flight.placement is not None:
            flight.placement.release(flight.request_id)
        self._homeless.pop(flight.request_id, None)
        if self._in_flight.pop(flight.request_id, None) is None:
            return
        record = flight.to_record(failed, self._clock.now_s())
        self.history.add(record)
        if self._observer is not None:
            self._observer.on_ended(record)


def _owner_id(flight: InFlight) -> str:
    return "nobody" if flight.owner is None else flight.owner.worker_id


def _error_of(failed: Failed, retry_after_s: float) -> RequestError:
    """Return what the client hears of a worker's failure."""
    match failed.kind:
        case FailureKind.INVALID:
            return InvalidRequestError(failed.message)
        case FailureKind.TIMEOUT:
            return RequestTimeoutError(failed.message)
        case FailureKind.ERROR:
            return InternalError(failed.message)
        case FailureKind.QUEUED:
            return UnavailableError(failed.message, code="queue_timeout", retry_after_s=retry_after_s)
        case FailureKind.REFUSED:
            return UnavailableError(failed.message)
