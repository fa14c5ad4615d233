"""What a simulated worker has to tell the router: collected while it acts, sent as one message."""

from diptych.core.events import FinishReason
from diptych.core.messages import Aborted, Finished, Grant, Loading, PeerAddress, Started, TokenRun, Tokens
from diptych.sim.memory import SimulatedMemory
from diptych.sim.sequence import SimulatedSequence
from diptych.sim.surroundings import ROUTER_ENDPOINT, Surroundings

TOKEN_ID = 0
"""Of all answers: nobody reads them."""


class WorkerReport:
    """News of one life of a worker that have not been sent."""

    def __init__(self, address: PeerAddress, memory: SimulatedMemory, around: Surroundings) -> None:
        self._address = address
        self._memory = memory
        self._around = around
        self._loading: list[Loading] = []
        self._started: list[Started] = []
        self._runs: list[TokenRun] = []
        self._finished: list[Finished] = []
        self._aborted: list[Aborted] = []

    def add_loading(self, sequence: SimulatedSequence, num_found_tokens: int) -> None:
        """Tell that so many of a prompt's tokens need not be read."""
        self._loading.append(
            Loading(request_id=sequence.request_id, attempt=sequence.submit.attempt, num_found_tokens=num_found_tokens)
        )

    def add_started(self, sequence: SimulatedSequence) -> None:
        """Tell that a prompt has been read."""
        self._started.append(
            Started(
                request_id=sequence.request_id,
                attempt=sequence.submit.attempt,
                num_cached_tokens=sequence.num_told_cached_tokens,
                num_loaded_tokens=sequence.num_loaded_tokens,
                prompt_logprobs=None,
            )
        )

    def add_first(self, grant: Grant) -> None:
        """Tell that a prompt has been read for another worker, and the first token."""
        self._started.append(
            Started(
                request_id=grant.request_id,
                attempt=grant.attempt,
                num_cached_tokens=grant.num_cached_tokens,
                num_loaded_tokens=grant.num_loaded_tokens,
                prompt_logprobs=None,
            )
        )
        self._runs.append(TokenRun(grant.request_id, grant.attempt, 0, [TOKEN_ID]))

    def add_tokens(self, sequence: SimulatedSequence) -> None:
        """Tell the tokens of an answer that nobody has told yet."""
        num_tokens = sequence.num_output_tokens
        if num_tokens > sequence.num_told:
            token_ids = [TOKEN_ID] * (num_tokens - sequence.num_told)
            run = TokenRun(sequence.request_id, sequence.submit.attempt, sequence.num_told, token_ids)
            self._runs.append(run)
            sequence.num_told = num_tokens

    def add_finished(self, sequence: SimulatedSequence) -> None:
        """Tell an answer's end, after all its tokens."""
        self._finished.append(
            Finished(
                request_id=sequence.request_id,
                attempt=sequence.submit.attempt,
                choice=0,
                reason=FinishReason.STOP,
                num_output_tokens=sequence.num_told,
                num_cached_tokens=sequence.num_told_cached_tokens,
                num_loaded_tokens=sequence.num_loaded_tokens,
                num_preemptions=sequence.num_preemptions,
                timeline=sequence.timeline,
            )
        )

    def add_aborted(self, sequence: SimulatedSequence) -> None:
        """Tell that an answer is given up as asked."""
        aborted = Aborted(
            request_id=sequence.request_id,
            choice=None,
            num_output_tokens=sequence.num_told,
            timeline=sequence.timeline,
        )
        self._aborted.append(aborted)

    def send(self) -> None:
        """Send what there is, and what has changed in the cache."""
        has_news = self._runs or self._started or self._finished or self._loading or self._aborted
        if not (has_news or self._memory.cache.has_changes):
            return
        message = Tokens(
            worker_id=self._address.worker_id,
            incarnation=self._address.incarnation,
            loading=self._loading,
            started=self._started,
            runs=self._runs,
            finished=self._finished,
            aborted=self._aborted,
            cache_change=self._memory.log.take_change(),
        )
        self._loading, self._started, self._runs, self._finished, self._aborted = [], [], [], [], []
        self._around.network.send(ROUTER_ENDPOINT, message)

    def send_snapshot(self) -> None:
        """Send all that is in the cache, after what has changed."""
        self.send()
        for piece in self._memory.log.snapshot():
            self._around.network.send(ROUTER_ENDPOINT, piece)
