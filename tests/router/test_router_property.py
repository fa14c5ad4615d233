"""Random lives: whatever workers send, in whatever order and however often, each request ends once and is heard of.

Workers are scripted: what they would send goes into a heap of letters, of which the test delivers any one at any time,
once or several times; clients leave, workers die and come back, time passes.
"""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from diptych.core.errors import RequestError
from diptych.core.events import FinishReason
from diptych.core.ids import RequestId, WorkerId
from diptych.core.messages import Abort, Aborted, Failed, FailureKind, Finished, Started, Submit, TokenEvent, Tokens
from diptych.core.service import EndOut, TokensOut

if TYPE_CHECKING:
    from tests.router.conftest import Cluster

WORKERS = ["prefill-0", "decode-0", "decode-1", "mixed-0"]
ACTIONS = ["ask", "deliver", "deliver", "deliver", "deliver", "echo", "leave", "kill", "revive", "beat", "wait"]


def token_of(name: str, index: int) -> int:
    return sum(name.encode()) * 1000 + index


class RandomLife:
    """One run of the property; `pick` numbers steer every choice."""

    def __init__(self, cluster: "Cluster") -> None:
        self.cluster = cluster
        self.letters: list[Tokens] = []
        self.incarnations = dict.fromkeys(WORKERS, 1)
        self.clients: dict[str, asyncio.Task[str]] = {}
        self.left: set[str] = set()
        self.accepted: set[str] = set()
        self.num_seen = 0
        for worker in WORKERS:
            cluster.heartbeat(worker)

    async def client(self, name: str, num_prompt_tokens: int) -> str:
        """Read an answer and return how it ended; every token must be the right one."""
        num_choices = 1 + num_prompt_tokens % 3
        tokens: list[list[int]] = [[] for _ in range(num_choices)]
        ends: dict[int, str] = {}
        try:
            request = self.cluster.request(name, num_prompt_tokens, num_choices=num_choices)
            async with self.cluster.router.serve(request) as answer:
                self.accepted.add(name)
                async for part in answer:
                    if isinstance(part, TokensOut):
                        assert part.choice not in ends, "a part after the end"
                        tokens[part.choice] += part.token_ids
                        if num_prompt_tokens % 4 == 1 and part.choice == 1:  # its client has a stop string
                            answer.stop_choice(1)
                    elif isinstance(part, EndOut):
                        assert part.choice not in ends, "an end after the end"
                        ends[part.choice] = part.reason.value
        except RequestError:
            return "failed"
        finally:
            for choice, got in enumerate(tokens):
                assert got == [token_of(name, index) + choice for index in range(len(got))]
        assert len(ends) == num_choices
        return "length" if "length" in ends.values() else "stop"

    async def act(self, action: str, pick: int) -> None:
        worker = WORKERS[pick % len(WORKERS)]
        match action:
            case "ask":
                name = f"r{len(self.clients)}"
                self.clients[name] = asyncio.create_task(self.client(name, 1 + pick % 40))
            case "deliver" if self.letters:
                self.cluster.router.on_message(self.letters.pop(pick % len(self.letters)))
            case "echo" if self.letters:
                self.cluster.router.on_message(self.letters[pick % len(self.letters)])
            case "leave" if self.clients:
                name = list(self.clients)[pick % len(self.clients)]
                self.left.add(name)
                self.clients[name].cancel()
            case "kill":
                self.cluster.exited(worker, self.incarnations[worker], will_return=pick % 2 == 0, exit_status=pick % 3)
            case "revive":
                self.incarnations[worker] += 1
                self.cluster.heartbeat(worker, self.incarnations[worker])
            case "beat":
                self.cluster.heartbeat(worker, self.incarnations[worker], num_answers=pick % 5, num_free_blocks=990)
            case "wait":
                self.cluster.advance(float(pick % 12))
        await self.cluster.let_run()
        self.let_workers_answer(pick)
        self.check_account()

    def let_workers_answer(self, pick: int) -> None:
        """Put on the heap what workers would send to what the router has sent them since the last look."""
        for endpoint, message in self.cluster.outbox.sent[self.num_seen :]:
            worker = endpoint.removeprefix("ipc://")
            if isinstance(message, Submit):
                self.letters += self.replies(worker, message, pick)
            elif isinstance(message, Abort):
                aborted = Aborted(
                    request_id=message.request_id, choice=message.choice, num_output_tokens=0, timeline={}
                )
                self.letters.append(self.letter(worker, aborted=[aborted]))
        self.num_seen = len(self.cluster.outbox.sent)

    def letter(self, worker: str, **content: object) -> Tokens:
        return Tokens(worker_id=WorkerId(worker), incarnation=self.incarnations[worker], **content)  # type: ignore[arg-type]

    def replies(self, worker: str, submit: Submit, pick: int) -> list[Tokens]:
        """Return all letters of one attempt: mostly an answer, else a refusal or a failure, or silence."""
        name, attempt = submit.request.request_id, submit.attempt
        num_tokens = pick % 7
        kinds = {0: FailureKind.REFUSED, 1: FailureKind.REFUSED, 2: FailureKind.ERROR, 3: FailureKind.TIMEOUT}
        kind = kinds.get(pick // 7 % 12)
        letters = []
        begun = submit.answers or {choice: [] for choice in range(submit.request.num_choices)}
        for choice, tokens in begun.items():
            assert tokens == [token_of(name, index) + choice for index in range(len(tokens))], "not what came before"
        for index in range(num_tokens):
            sender = submit.prefill.worker_id if submit.prefill and index == 0 else worker
            events = [
                TokenEvent(RequestId(name), attempt, at, token_of(name, at) + choice, choice)
                for choice, tokens in begun.items()
                if (at := len(tokens) + index) < submit.request.sampling.max_tokens
            ]
            started = Started(request_id=name, attempt=attempt, num_cached_tokens=0, prompt_logprobs=None)
            letters.append(self.letter(sender, tokens=events, started=[started] if index == 0 else []))
        if kind is FailureKind.REFUSED:
            letters.clear()
        if kind is not None:
            failed = Failed(request_id=name, attempt=attempt, kind=kind, message="scripted", timeline={})
            return [*letters, self.letter(worker, failed=[failed])]
        if pick // 7 % 12 == 4:
            return letters  # the worker hangs
        return [
            *letters,
            *(
                self.letter(worker, finished=[self.finished(submit, choice, min(len(tokens) + num_tokens, 8))])
                for choice, tokens in begun.items()
            ),
        ]

    def finished(self, submit: Submit, choice: int, num_tokens: int) -> Finished:
        return Finished(
            request_id=submit.request.request_id,
            attempt=submit.attempt,
            choice=choice,
            reason=FinishReason.LENGTH,
            num_output_tokens=num_tokens,
            num_cached_tokens=0,
            num_preemptions=0,
            timeline={},
        )

    def check_account(self) -> None:
        """No worker counts more requests than there are, and none is lost or ended twice at any moment."""
        num_open = self.cluster.router.status().num_requests
        assert all(count <= num_open for count in self.cluster.num_assigned().values())
        ended = [record.request_id for record in self.cluster.router.recent_requests()]
        assert len(ended) == len(set(ended))
        assert len(ended) + num_open >= len(self.accepted)

    async def wind_up(self) -> None:
        """Let all deadlines pass; then everyone must have heard."""
        for wait_s in (32.0, 11.0):
            self.cluster.advance(wait_s)
            await self.cluster.let_run()
        outcomes = await asyncio.gather(*self.clients.values(), return_exceptions=True)
        records = {record.request_id: record.outcome for record in self.cluster.router.recent_requests()}
        assert records.keys() == self.accepted
        for name, outcome in zip(self.clients, outcomes, strict=True):
            if isinstance(outcome, asyncio.CancelledError):
                assert name in self.left
            else:
                assert isinstance(outcome, str), outcome
                assert outcome == records.get(name, "failed")
        for worker in WORKERS:
            self.cluster.heartbeat(worker, self.incarnations[worker])
        router = self.cluster.router
        assert router.status().num_requests == 0
        assert self.cluster.num_assigned() == {}
        for load in router._registry.worker_loads(4):
            assert not load.is_accepting or (load.num_used_blocks, load.num_queued_tokens) == (0, 0)


@given(script=st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 1000)), min_size=10, max_size=80))
def test_every_accepted_request_ends_once_and_its_client_hears_so(
    make_cluster: "Callable[..., Cluster]", script: list[tuple[str, int]]
) -> None:
    async def scenario() -> None:
        life = RandomLife(cluster)
        for action, pick in [("ask", 9), *script]:
            await life.act(action, pick)
        await life.wind_up()

    cluster = make_cluster(max_outstanding_requests=6)
    cluster.run(scenario())


def test_the_script_reaches_every_outcome(make_cluster: "Callable[..., Cluster]") -> None:
    """Guards the property against a script that ends all requests alike."""
    outcomes: set[str] = set()

    async def scenario(cluster: "Cluster", pick: int) -> None:
        life = RandomLife(cluster)
        await life.act("ask", pick)
        for _ in range(20):
            await life.act("deliver", pick)
        await life.act("ask", pick + 35)
        await life.act("leave", 1)
        await life.wind_up()
        outcomes.update(record.outcome for record in cluster.router.recent_requests())

    for pick in range(0, 84, 5):
        cluster = make_cluster()
        cluster.run(scenario(cluster, pick))
    assert outcomes == {"length", "failed", "aborted"}
