"""A real HTTP server on loopback in a thread, in front of a service that says what a test tells it to say."""

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import ExitStack, aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import openai
import pytest
import uvloop

from diptych.core.errors import NotFoundError, RequestError, UnavailableError
from diptych.core.events import FinishReason, Lifecycle, RequestRecord
from diptych.core.ids import NodeId, RequestId, WorkerId
from diptych.core.messages import HealthState, PeerAddress, Role, StackSamples, WorkerState, WorkerStatus
from diptych.core.request import Request, TokenLogprobs
from diptych.core.service import AnswerPart, ClusterStatus, EndOut, RunningAnswer, StartOut, TokensOut, WorkerInfo
from diptych.frontend.app import create_app
from diptych.frontend.server import FrontendServer
from diptych.frontend.settings import FrontendSettings
from diptych.frontend.text.tokenizer import Tokenizer

MODEL = "smol"
PATIENCE_S = 20.0
"""For what must happen soon on a machine that may be busy."""

Script = Callable[[Request], AsyncGenerator[AnswerPart, None]]


@dataclass
class Left:
    """A request whose context was left."""

    request_id: RequestId
    was_complete: bool
    stopped: frozenset[int] = frozenset()


class FakeAnswer:
    """An answer that a script makes. A choice that is stopped ends at once, and its further parts are dropped."""

    def __init__(self, parts: AsyncIterator[AnswerPart], stopped: set[int]) -> None:
        self._parts = parts
        self._stopped = stopped
        self._ends: list[EndOut] = []

    async def __aiter__(self) -> AsyncGenerator[AnswerPart, None]:
        is_first = True
        async for part in self._parts:
            if is_first and not isinstance(part, StartOut):
                yield StartOut(0)
            is_first = False
            while self._ends:
                yield self._ends.pop()
            if isinstance(part, StartOut) or part.choice not in self._stopped:
                yield part
        while self._ends:
            yield self._ends.pop()

    def stop_choice(self, choice: int) -> None:
        self._stopped.add(choice)
        self._ends.append(EndOut(FinishReason.STOP, choice))


def record(request_id: str, **changes: Any) -> RequestRecord:
    """Make up a request that has ended, but for what the test says of it."""
    facts: dict[str, Any] = {
        "outcome": "stop",
        "decode_worker": "mixed-0",
        "prefill_worker": None,
        "num_prompt_tokens": 3,
        "num_cached_tokens": 0,
        "num_output_tokens": 2,
        "num_preemptions": 0,
        "timeline": {Lifecycle.ARRIVED: 1.0, Lifecycle.FINISHED: 2.0},
    }
    return RequestRecord(request_id=request_id, **facts | changes)


@dataclass
class FakeService:
    """Answers with whatever `script` yields, and remembers who came and who left."""

    script: Script
    refusal: RequestError | None = None
    health: HealthState = "ready"
    requests: list[Request] = field(default_factory=list)
    orders: list[tuple[str, float, bool]] = field(default_factory=list)
    """To drain workers."""
    ended: list[RequestRecord] = field(default_factory=lambda: [record("chatcmpl-1")])
    unfinished: list[RequestRecord] = field(default_factory=list)
    entered: "queue.Queue[Request]" = field(default_factory=queue.Queue)
    left: "queue.Queue[Left]" = field(default_factory=queue.Queue)

    @asynccontextmanager
    async def serve(self, request: Request) -> AsyncIterator[RunningAnswer]:
        if self.refusal is not None:
            raise self.refusal
        self.requests.append(request)
        self.entered.put(request)
        was_complete = False
        stopped: set[int] = set()

        async def parts() -> AsyncGenerator[AnswerPart, None]:
            nonlocal was_complete
            async with aclosing(self.script(request)) as script:
                async for part in script:
                    was_complete = was_complete or isinstance(part, EndOut)
                    yield part

        try:
            async with aclosing(parts()) as answer:
                yield FakeAnswer(answer, stopped)
        finally:
            self.left.put(Left(request.request_id, was_complete, frozenset(stopped)))

    def drain_worker(self, worker_id: WorkerId, timeout_s: float, *, will_return: bool) -> PeerAddress:
        self.orders.append((worker_id, timeout_s, will_return))
        if worker_id != "mixed-0":
            raise NotFoundError(f"there is no worker {worker_id}")
        return PeerAddress(worker_id, "ipc:///nowhere", 1)

    def drain_node(self, node: NodeId) -> None:
        raise NotFoundError(f"there is no machine {node}")

    def revive_worker(self, worker_id: WorkerId) -> None:
        raise UnavailableError(f"{worker_id} is ready; only one that is down can be started")

    async def sample_worker(self, worker_id: WorkerId, duration_s: float) -> StackSamples:
        raise NotFoundError(f"there is no worker {worker_id} to look at for {duration_s:g} s")

    def status(self) -> ClusterStatus:
        worker = WorkerInfo(
            role=Role.MIXED,
            address=PeerAddress(WorkerId("mixed-0"), "ipc:///nowhere", 1),
            status=WorkerStatus(
                state=WorkerState.READY,
                pid=1,
                cores=[0],
                engine="fake",
                num_blocks=8,
                num_free_blocks=8,
                num_cached_blocks=0,
                num_running=0,
                num_waiting=0,
                queued_prefill_tokens=0,
                prefill_tokens_per_s=1.0,
                decode_step_s=0.0,
                memory_bytes=0,
                num_steps=0,
            ),
            heartbeat_age_s=0.1,
            num_assigned=0,
        )
        return ClusterStatus(
            health=self.health,
            model=MODEL,
            max_model_len=64,
            num_requests=len(self.unfinished),
            num_ended=len(self.ended),
            workers={WorkerId("mixed-0"): worker},
        )

    def recent_requests(self) -> list[RequestRecord]:
        return list(self.ended)

    def unfinished_requests(self, most: int) -> list[RequestRecord]:
        return self.unfinished[:most]


def say(
    token_ids: list[int],
    reason: FinishReason = FinishReason.STOP,
    num_cached_tokens: int = 0,
    num_tokens_together: int = 1,
    num_loaded_tokens: int = 0,
) -> Script:
    """Answer with these tokens, cut at `max_tokens`."""

    async def script(request: Request) -> AsyncGenerator[AnswerPart, None]:
        max_tokens = request.sampling.max_tokens
        said = token_ids[:max_tokens]
        choices = range(request.num_choices)
        prompt_logprobs = told(request.prompt_token_ids[1:], request.sampling.num_prompt_logprobs)
        yield StartOut(num_cached_tokens, prompt_logprobs, num_loaded_tokens)
        for start in range(0, len(said), num_tokens_together):
            part = said[start : start + num_tokens_together]
            for choice in choices:
                yield TokensOut(part, choice, told(part, request.sampling.num_logprobs))
                await asyncio.sleep(0)
        for choice in choices:
            yield EndOut(reason if len(token_ids) < max_tokens else FinishReason.LENGTH, choice)

    return script


def told(token_ids: list[int], num_top: int | None) -> list[TokenLogprobs] | None:
    """Make log-probabilities up: -1 for each token that came, -2, -3 and so on for tokens 100, 101 and so on."""
    if num_top is None:
        return None
    top = [(100 + rank, -2.0 - rank) for rank in range(num_top)]
    return [TokenLogprobs(-1.0, 1, top) for _ in token_ids]


def say_and_wait(token_ids: list[int]) -> Script:
    """Answer with these tokens and then with nothing, for ever."""

    async def script(_: Request) -> AsyncGenerator[AnswerPart, None]:
        for token_id in token_ids:
            yield TokensOut([token_id])
        await asyncio.Event().wait()

    return script


def say_and_raise(token_ids: list[int], error: Exception) -> Script:
    """Answer with these tokens and then fail."""

    async def script(_: Request) -> AsyncGenerator[AnswerPart, None]:
        for token_id in token_ids:
            yield TokensOut([token_id])
        raise error

    return script


@dataclass
class Frontend:
    """A running server, what is behind it, and ways to talk to it."""

    service: FakeService
    server: FrontendServer
    tokenizer: Tokenizer
    loop: asyncio.AbstractEventLoop
    thread: threading.Thread

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"

    def say(self, text: str, **how: Any) -> list[int]:
        """Let the service answer with this text; return its tokens."""
        token_ids = self.tokenizer.encode(text)
        self.service.script = say(token_ids, **how)
        return token_ids

    def say_and_wait(self, text: str) -> None:
        """Let the service begin with this text and never go on."""
        self.service.script = say_and_wait(self.tokenizer.encode(text))

    def say_and_raise(self, text: str, error: Exception) -> None:
        """Let the service fail after this text."""
        self.service.script = say_and_raise(self.tokenizer.encode(text), error)

    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=PATIENCE_S)

    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S)

    def next_entered(self) -> Request:
        """Wait for the next request to reach the service."""
        return self.service.entered.get(timeout=PATIENCE_S)

    def next_left(self) -> Left:
        """Wait for the next request to leave the service."""
        return self.service.left.get(timeout=PATIENCE_S)

    def begin_drain(self) -> None:
        self.loop.call_soon_threadsafe(self.server.begin_drain)

    def stop(self, grace_s: float = 0.0) -> None:
        """Stop the server and wait for its thread."""
        if self.thread.is_alive():
            asyncio.run_coroutine_threadsafe(self.server.stop(grace_s), self.loop).result(PATIENCE_S)
            self.thread.join(PATIENCE_S)


@contextmanager
def running_frontend(tokenizer: Tokenizer, settings: FrontendSettings) -> Iterator[Frontend]:
    """Serve on a free port until the block ends."""
    started: queue.Queue[Frontend] = queue.Queue()

    async def serve() -> None:
        service = FakeService(say([]))
        server = FrontendServer(create_app(service, tokenizer, settings), "127.0.0.1", 0)
        server.bind()
        started.put(Frontend(service, server, tokenizer, asyncio.get_running_loop(), threading.current_thread()))
        await server.serve()

    def run() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve())

    thread = threading.Thread(target=run, name="frontend")
    thread.start()
    frontend = started.get(timeout=PATIENCE_S)
    try:
        yield frontend
    finally:
        frontend.stop()
        assert not thread.is_alive()


StartFrontend = Callable[..., Frontend]


@pytest.fixture
def start_frontend(tokenizer: Tokenizer) -> Iterator[StartFrontend]:
    """Start a server of one's own; keywords replace settings."""
    with ExitStack() as running:

        def start(**changes: Any) -> Frontend:
            settings = replace(FrontendSettings(model_name=MODEL, max_model_len=64), **changes)
            return running.enter_context(running_frontend(tokenizer, settings))

        yield start


@pytest.fixture(scope="session")
def shared_frontend(tokenizer: Tokenizer) -> Iterator[Frontend]:
    with running_frontend(tokenizer, FrontendSettings(model_name=MODEL, max_model_len=64)) as frontend:
        yield frontend


@pytest.fixture
def frontend(shared_frontend: Frontend) -> Frontend:
    """The shared server with a service that knows of nothing yet. Context: 64 tokens."""
    service = shared_frontend.service
    service.refusal = None
    service.health = "ready"
    service.requests.clear()
    service.entered = queue.Queue()
    service.left = queue.Queue()
    shared_frontend.say("Hello there, world!")
    return shared_frontend
