"""Finds workers for requests: at first, and again when one has refused, died or been taken out of service.

A request that nobody can take now waits without a home for a worker to come back, as long as one is expected to. What
its client has got is never asked for again: the next worker gets the tokens so far, and the word where KV of them may
still lie.

Invariants: a request changes its worker a bounded number of times; one without a home holds nothing anywhere.
"""

import logging

from diptych.core.clock import Clock
from diptych.core.errors import (
    PeerUnreachableError,
    RequestError,
    RequestTimeoutError,
    SloError,
    UnavailableError,
)
from diptych.core.logs import about
from diptych.core.messages import FormerAttempt, Submit
from diptych.core.slo import Slo
from diptych.policy.admission import Rejected, admit_by_forecast, retry_after_s
from diptych.router.history import History
from diptych.router.in_flight import InFlight
from diptych.router.placement import Placement, Placer
from diptych.router.ports import LetterBox
from diptych.router.settings import RouterSettings

NO_WORKER = "no worker that can take this request is up, nor expected back; see `diptych status`"

log = logging.getLogger(__name__)


class Mover:
    """Keeps nothing of its own. Owned by the event loop's thread; no method waits."""

    def __init__(  # noqa: PLR0913, PLR0917  the parts that it is made of
        self,
        placer: Placer,
        outbox: LetterBox,
        clock: Clock,
        settings: RouterSettings,
        history: History,
        max_model_len: int,
    ) -> None:
        self._placer = placer
        self._outbox = outbox
        self._clock = clock
        self._settings = settings
        self._history = history
        self._max_model_len = max_model_len

    def on_refused(self, flight: InFlight, reason: str) -> None:
        """Note that a worker does not take the request; it has nothing of it.

        Raises: UnavailableError if that was one too many.
        """
        self._leave(flight, reason)
        flight.num_refusals += 1
        if flight.num_refusals >= self._settings.max_refusals:
            raise UnavailableError(f"no worker took the request in {flight.num_refusals} attempts; the last: {reason}")

    def on_worker_gone(self, flight: InFlight, reason: str, *, is_orderly: bool) -> None:
        """Note that a worker that had the request is gone, by itself or (`is_orderly`) because it was told to.

        Raises: UnavailableError if that was one too many.
        """
        assert flight.placement is not None
        flight.former = FormerAttempt(worker_id=flight.placement.decode.worker_id, attempt=flight.attempt)
        flight.former_node = flight.placement.decode.address.node
        flight.migrated_s = self._clock.now_s()
        flight.num_migrations += 1
        self._leave(flight, reason)
        flight.num_deaths += not is_orderly
        if flight.num_deaths > self._settings.max_migrations:
            raise UnavailableError(
                f"{flight.num_deaths} workers have died while they served this request; the last: {reason}"
            )

    def on_answer_torn(self, flight: InFlight, reason: str) -> None:
        """Note that a part of the answer is lost, though its worker lives and has ended it. It counts as a death.

        Raises: UnavailableError if that was one too many.
        """
        self.on_worker_gone(flight, reason, is_orderly=False)

    def _leave(self, flight: InFlight, reason: str) -> None:
        assert flight.placement is not None
        life = flight.placement.decode
        text = "attempt %d at %s on %s came to nothing: %s"
        more = about(request_id=flight.request_id)
        log.info(text, flight.attempt, flight.request_id, life.worker_id, reason, extra=more)
        if not life.is_over:  # one that is lost may come back and be asked again
            flight.refused_by.add(life.address)
        flight.setback = reason
        flight.lose_home()
        flight.attempt += 1
        flight.give_up_s = self.homeless_until_s(flight)

    def homeless_until_s(self, flight: InFlight) -> float:
        """Return how long a request that has no worker now waits for one."""
        limits_s = [flight.last_moment_s, self._clock.now_s() + self._settings.homeless_timeout_s]
        if self._settings.queue_timeout_s is not None and not flight.num_migrations:
            limits_s.append(flight.request.arrived_s + self._settings.queue_timeout_s)
        return min(limits_s)

    def why_homeless(self, flight: InFlight) -> RequestError:
        """Return what the client hears when its request has waited for a worker as long as it may."""
        now_s, settings = self._clock.now_s(), self._settings
        if now_s >= flight.request.deadline_s:
            return RequestTimeoutError("the deadline passed before a worker took the request")
        reason = flight.setback or "no worker is up"
        waited_s = now_s - flight.request.arrived_s
        if settings.queue_timeout_s is not None and not flight.num_migrations and waited_s >= settings.queue_timeout_s:
            text = f"{reason}, and none came back in {settings.queue_timeout_s:g} s (--queue-timeout-s)"
            code = "queue_timeout"
        else:
            text, code = f"{reason}, and none came back in {settings.homeless_timeout_s:.0f} s", None
        return UnavailableError(
            f"{text}; try again later", code=code, retry_after_s=retry_after_s(self._history.mean_request_s)
        )

    def _raise_if_too_late(self, flight: InFlight, placement: Placement) -> None:
        """Raises: SloError if a new request is predicted to miss the SLO there."""
        if flight.attempt:
            return
        slo = Slo(self._settings.slo_ttft_s, self._settings.slo_tpot_s)
        admission = admit_by_forecast(self._settings.admission, placement.forecast, slo)
        if isinstance(admission, Rejected):
            raise SloError(admission.reason, retry_after_s=admission.retry_after_s)

    def try_settle(self, flight: InFlight) -> bool:
        """Send a request that is homeless to a worker; False: none takes it now, but one may come back.

        Raises: RequestTimeoutError; SloError; UnavailableError if nobody is there nor expected.
        """
        while True:
            placement = self._try_place(flight)
            if placement is None:
                if not self._placer.is_anyone_coming:
                    raise UnavailableError(f"{flight.setback}; {NO_WORKER}" if flight.setback else NO_WORKER)
                return False
            self._raise_if_too_late(flight, placement)
            flight.placement = placement
            if self._try_submit(flight, placement):
                return True

    def _try_place(self, flight: InFlight) -> Placement | None:
        """Choose workers. Raises: RequestTimeoutError."""
        request = flight.request
        if self._clock.now_s() >= request.deadline_s:
            raise RequestTimeoutError("the deadline passed before a worker took the request")
        num_prompt_tokens, max_tokens = len(request.prompt_token_ids), request.sampling.max_tokens
        return self._placer.try_place(
            num_prompt_tokens,
            flight.prompt_hashes,
            flight.refused_by,
            min(self._history.expected_output_tokens, max_tokens) * request.num_choices,
            min(num_prompt_tokens + max_tokens, self._max_model_len),
        )

    def _try_submit(self, flight: InFlight, placement: Placement) -> bool:
        """Send it; False if the worker cannot be reached. Raises: UnavailableError, as `on_refused`."""
        prefill = placement.prefill
        submit = Submit(
            request=flight.request,
            attempt=flight.attempt,
            prefill=None if prefill is None else prefill.address,
            router=self._settings.router,
            frontend=self._settings.frontend,
            answers=flight.begun_answers,
            # Whose blocks another machine cannot read: there all is computed again.
            former=flight.former if flight.former_node == placement.decode.address.node else None,
            copy=placement.copy,
        )
        sent_s = self._clock.now_s()  # before: the worker may have gone on with it when `send` returns
        try:
            self._outbox.send(placement.decode.address.endpoint, submit)
        except PeerUnreachableError as error:
            self.on_refused(flight, str(error))
            return False
        flight.open()
        flight.give_up_s = flight.last_moment_s
        flight.routed_s = flight.routed_s or sent_s
        placement.assign(flight.request_id, len(flight.open_choices))
        return True
