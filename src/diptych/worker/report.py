"""What a worker has to tell the routers: collected during a step, sent as one message to each whom it concerns."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from diptych.core.events import FinishReason, Lifecycle
from diptych.core.ids import RouterId, WorkerId
from diptych.core.messages import (
    Aborted,
    Begun,
    CacheChange,
    Failed,
    FailureKind,
    Finished,
    Loading,
    Started,
    TokenEvent,
    Tokens,
)
from diptych.core.request import SampledToken, TokenLogprobs
from diptych.worker.sequence import Sequence


@dataclass(slots=True)
class Told:
    """Events of one router's requests since the last message to it."""

    loading: list[Loading] = field(default_factory=list)
    begun: list[Begun] = field(default_factory=list)
    started: list[Started] = field(default_factory=list)
    tokens: list[TokenEvent] = field(default_factory=list)
    finished: list[Finished] = field(default_factory=list)
    failed: list[Failed] = field(default_factory=list)
    aborted: list[Aborted] = field(default_factory=list)

    def message(self, worker_id: WorkerId, incarnation: int, cache_change: CacheChange | None) -> Tokens:
        """Return all of it as a message."""
        return Tokens(
            worker_id=worker_id,
            incarnation=incarnation,
            loading=self.loading,
            begun=self.begun,
            started=self.started,
            tokens=self.tokens,
            finished=self.finished,
            failed=self.failed,
            aborted=self.aborted,
            cache_change=cache_change,
        )


class Report:
    """Events since the last messages."""

    def __init__(self) -> None:
        self._told: defaultdict[RouterId, Told] = defaultdict(Told)

    def of(self, router: RouterId) -> Told:
        """Return what this router is to be told."""
        return self._told[router]

    def add_loading(self, sequence: Sequence, num_found_tokens: int) -> None:
        """Tell that so many of a prompt's tokens need not be read."""
        self.of(sequence.router).loading.append(
            Loading(request_id=sequence.request_id, attempt=sequence.attempt, num_found_tokens=num_found_tokens)
        )

    def add_begun(self, sequence: Sequence, prefill_started_s: float) -> None:
        """Tell that the first chunk of a prompt has been in a step."""
        self.of(sequence.router).begun.append(
            Begun(request_id=sequence.request_id, attempt=sequence.attempt, prefill_started_s=prefill_started_s)
        )

    def add_started(self, sequence: Sequence, prompt_logprobs: list[TokenLogprobs] | None) -> None:
        """Tell that a prompt has been read."""
        self.of(sequence.router).started.append(
            Started(
                request_id=sequence.request_id,
                attempt=sequence.attempt,
                num_cached_tokens=sequence.num_cached_tokens,
                num_loaded_tokens=sequence.num_loaded_tokens,
                prompt_logprobs=prompt_logprobs,
            )
        )

    def add_token(self, sequence: Sequence, token: SampledToken) -> None:
        """Tell the newest token of an answer."""
        index = sequence.num_output_tokens - 1
        self.of(sequence.router).tokens.append(
            TokenEvent(sequence.request_id, sequence.attempt, index, token.token_id, sequence.choice, token.logprobs)
        )

    def add_finished(self, sequence: Sequence, reason: FinishReason, now_s: float) -> None:
        """Tell that an answer is complete."""
        sequence.timeline[Lifecycle.FINISHED] = now_s
        self.of(sequence.router).finished.append(
            Finished(
                request_id=sequence.request_id,
                attempt=sequence.attempt,
                choice=sequence.choice,
                reason=reason,
                num_output_tokens=sequence.num_output_tokens,
                num_cached_tokens=sequence.num_cached_tokens,
                num_loaded_tokens=sequence.num_loaded_tokens,
                num_preemptions=sequence.num_preemptions,
                timeline=sequence.timeline,
            )
        )

    def add_failed(self, sequence: Sequence, kind: FailureKind, message: str, now_s: float) -> None:
        """Tell that a request will get no (further) answer."""
        sequence.timeline[Lifecycle.FINISHED] = now_s
        self.of(sequence.router).failed.append(
            Failed(
                request_id=sequence.request_id,
                attempt=sequence.attempt,
                kind=kind,
                message=message,
                timeline=sequence.timeline,
            )
        )

    def add_aborted(self, sequence: Sequence, now_s: float) -> None:
        """Tell that a choice, or a request whose choices have not forked off yet, was aborted as asked."""
        sequence.timeline[Lifecycle.FINISHED] = now_s
        self.of(sequence.router).aborted.append(
            Aborted(
                request_id=sequence.request_id,
                choice=None if sequence.num_due_choices else sequence.choice,
                num_output_tokens=sequence.num_output_tokens,
                timeline=sequence.timeline,
            )
        )

    def take(
        self, worker_id: WorkerId, incarnation: int, cache_change: CacheChange | None, routers: Iterable[RouterId]
    ) -> dict[RouterId, Tokens]:
        """Return a message for each router that there is something to tell, and start anew.

        `cache_change` is for all `routers`, which are those that there are.
        """
        told, self._told = self._told, defaultdict(Told)
        concerned = list(told if cache_change is None else routers)
        return {router: told[router].message(worker_id, incarnation, cache_change) for router in concerned}
