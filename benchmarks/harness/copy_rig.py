"""A decode worker's parts around a real engine, without its loop, and a second owner whose prefixes it copies.

Both owners live in one process and one memory, so letters between them need no socket; loans, checks and records are
those between two workers.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import cast

from diptych.core.clock import SystemClock
from diptych.core.config import ServeConfig
from diptych.core.cost_model import StepWork
from diptych.core.ids import BlockId, RequestId, WorkerId
from diptych.core.messages import Borrow, CopyOrder, Lent, Message, PeerAddress, Returned
from diptych.core.request import Request, SamplingParams
from diptych.engine.base import Row, StepEngine, WarmUp
from diptych.engine.loading import load_engine
from diptych.hardware.known_costs import modeled_costs
from diptych.kv.hashing import BlockHasher
from diptych.kv.header import SegmentHeader, header_bytes
from diptych.kv.prefix_cache import PrefixCache
from diptych.launch.costs import find_costs
from diptych.models import resolve
from diptych.transfer.segment import Segment
from diptych.wire.mailbox import Outbox
from diptych.worker.copies import Copies
from diptych.worker.copy_pace import CopyPace
from diptych.worker.load import Speed
from diptych.worker.loans import MOST_SHARE, Loans
from diptych.worker.memory import StepPart, WorkerMemory
from diptych.worker.sampling.chooser import TokenChooser
from diptych.worker.sequence import Sequence as Answer
from diptych.worker.sequence_blocks import SequenceBlocks
from harness.options import Options, setting

TOKEN_ID = 500
PATIENCE_S = 1e6


@dataclass(frozen=True, kw_only=True)
class CopyOptions(Options):
    """Flags of this benchmark."""

    num_answers: int = setting(8, "Answers in each step.")
    context: int = setting(300, "Tokens of each.")
    num_steps: int = setting(200, "Steps of each kind in each pair.")
    prefix_blocks: int = setting(64, "Blocks of each prefix that is copied.")


class _Post(Outbox):
    """Keeps letters for whoever looks."""

    def __init__(self) -> None:
        self.letters: list[Message] = []

    def send(self, endpoint: str, message: Message) -> None:
        """Keep it; whoever shares the process needs no socket."""
        self.letters.append(message)


class _Owner:
    """An owner of blocks, without a loop: what copies need of it."""

    def __init__(self, name: str, block_ids: Sequence[BlockId], memory: WorkerMemory, hasher: BlockHasher) -> None:
        self.address = PeerAddress(WorkerId(name), name, 1)
        self.post = _Post()
        cache = PrefixCache(block_ids)
        self.blocks = SequenceBlocks(cache, memory, hasher, incarnation=1 + (name == "lender"), is_exact=False)
        self.loans = Loans(self.address, cache, self.post, SystemClock())
        self.copies = Copies(self.address, self.blocks, memory, self.post, SystemClock())

    def reserve(self, number: int, num_tokens: int, source: PeerAddress | None) -> Answer:
        """Return a sequence that has blocks for a prompt which nobody has cached, but for the owner of the same."""
        request = Request(
            request_id=RequestId(f"prefix-{number}"),
            prompt_token_ids=[TOKEN_ID] * num_tokens,
            sampling=SamplingParams(max_tokens=1),
            cache_salt=str(number),
            deadline_s=PATIENCE_S,
            arrived_s=0.0,
        )
        chooser = TokenChooser(
            request.sampling, choice=0, prompt_token_ids=request.prompt_token_ids, eos_token_ids=[], vocab_size=1
        )
        hashes = self.blocks.hash_prompt(request)
        answer = Answer(request, 0, None, number, list(request.prompt_token_ids), hashes, chooser)
        if source is not None:
            answer.copy_order = CopyOrder(num_tokens // self.blocks.block_size, source)
        if not self.blocks.try_reserve(answer, 0):
            raise AssertionError("the owner was given too few blocks")
        return answer


class CopyRig:
    """A batch of answers, and a prefix that is always under way."""

    def __init__(self, options: CopyOptions, core: int) -> None:
        """Load the model on a core, which the process must be pinned to.

        Raises: EngineError, LaunchError.
        """
        self._options = options
        config = ServeConfig(model=options.model, engine=options.engine, modeled_time_scale=options.modeled_time_scale)
        model = resolve(options.model)
        self.engine: StepEngine = load_engine(
            options.engine,
            model_dir=model.path,
            eos_token_ids=frozenset(model.eos_token_ids),
            num_threads=1,
            kv_dtype=config.kv_dtype,
            modeled_costs=modeled_costs(options.modeled_time_scale),
            clock=SystemClock(),
        )
        name = WorkerId("borrower")
        costs = find_costs(config, model, self.engine.name, {name: [core]}).models[name]
        layout, batch = self.engine.layout, options.num_answers
        num_each = layout.num_blocks_for(options.context + 1)
        num_own = batch * num_each
        num_lent = int((options.prefix_blocks + 2) / MOST_SHARE)
        num_blocks = num_own + num_lent + options.prefix_blocks + 2
        begin = header_bytes(num_blocks)
        segment, descriptor = Segment.create(begin + num_blocks * layout.block_bytes)
        os.close(descriptor)
        segment.populate()
        header = SegmentHeader.create(
            segment.view(0, begin), num_blocks, layout.block_bytes, layout.fingerprint, model.key
        )
        self.memory = WorkerMemory(header, segment.view(begin, num_blocks * layout.block_bytes), layout)
        self.engine.bind(segment.view(begin, num_blocks * layout.block_bytes), num_blocks)
        ids = [BlockId(number) for number in range(num_blocks)]
        prefill_speed = self.engine.warm_up(WarmUp(64, (batch,), False), ids[: max(num_own, 10)])
        self.speed = Speed(prefill_speed, costs, 64)
        tables = [ids[index * num_each : (index + 1) * num_each] for index in range(batch)]
        header.reserve(ids[:num_own], 1)
        self.parts = [
            StepPart(Row([TOKEN_ID], options.context, table, 1), RequestId(f"answer-{index}"), 1)
            for index, table in enumerate(tables)
        ]
        self.work = StepWork.of_answers(batch, batch * options.context)
        hasher = BlockHasher(model.key, layout.fingerprint, block_size=layout.block_size)
        self.lender = _Owner("lender", ids[num_own : num_own + num_lent], self.memory, hasher)
        self.borrower = _Owner("borrower", ids[num_own + num_lent :], self.memory, hasher)
        self.borrower.copies.measure(ids[num_own : num_own + 10])
        self._numbers = count()
        self._prefix: Answer | None = None

    def refill(self) -> None:
        """See to it that there is something to copy: the last prefix, or the next one."""
        if self._prefix is not None:
            return
        number, size = next(self._numbers), self.engine.layout.block_size
        num_tokens = self._options.prefix_blocks * size + 2
        held = self.lender.reserve(number, num_tokens, None)
        self.lender.blocks.on_computed([(held, num_tokens)])
        self.lender.blocks.release(held)
        self._prefix = self.borrower.reserve(number, num_tokens, self.lender.address)
        if not self.borrower.copies.try_begin(self._prefix):
            raise AssertionError("there is nothing to borrow")
        self.lender.loans.on_borrow(cast("Borrow", self.borrower.post.letters.pop()))
        if self.borrower.copies.on_lent(cast("Lent", self.lender.post.letters.pop())):
            raise AssertionError("nothing was lent")

    def copy(self, most_bytes: int, pace: CopyPace) -> int:
        """Copy a slice; return how many bytes that was."""
        assert self._prefix is not None
        copy = self.borrower.copies.get(self._prefix.epoch)
        assert copy is not None
        before = copy.num_bytes
        ended = self.borrower.copies.advance(most_bytes, pace.may_go_on)
        if ended:
            self.lender.loans.on_returned(cast("Returned", self.borrower.post.letters.pop()))
            self.borrower.blocks.release(self._prefix)
            self._prefix = None
        return copy.num_bytes - before
