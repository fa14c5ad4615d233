"""The process that tries grammars out, one after the other. Whatever a grammar does, it does it here first.

    frontend  --TokensOfModel-->  child
    frontend  <--Ready--          child
    frontend  --Trial-->          child
    frontend  <--Verdict--        child    or no answer: it died of the grammar, by a limit of the system's or a crash

Frames are msgpack behind four bytes of length, on stdin and stdout. The process ends when stdin does, that is when the
frontend ends, however that ends.
"""

import os
import resource
import sys
import threading
import time
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO

import msgspec

from diptych.core.errors import GrammarError
from diptych.models.grammar_guide import compile_grammar, make_ll_tokenizer
from diptych.models.vocabulary import Vocabulary

CPU_LIMIT_S = 2
"""For one grammar; the system counts whole seconds."""
MEMORY_LIMIT_BYTES = 1_000_000_000
"""More than the process has when it is ready."""
STACK_BYTES = 2 * 2**20
"""A quarter of what threads of workers have: what recurses too deeply there has crashed here first."""
NICENESS = 10
LENGTH_BYTES = 4


class TokensOfModel(msgspec.Struct, frozen=True):
    """What grammars are tried with."""

    token_bytes: list[bytes]
    special_token_ids: list[int]
    eos_token_ids: list[int]


class Ready(msgspec.Struct, frozen=True):
    """Trials may come."""


class Trial(msgspec.Struct, frozen=True):
    """A grammar to try."""

    grammar: str


class Verdict(msgspec.Struct, frozen=True):
    """What came of it."""

    fault: str | None
    """None: it can be used."""


def write_frame(message: msgspec.Struct) -> bytes:
    """Return a message as it is sent."""
    content = msgspec.msgpack.encode(message)
    return len(content).to_bytes(LENGTH_BYTES, "big") + content


def _read_frame(stream: BinaryIO) -> bytes:
    """Return the next frame. The end of the stream ends the process."""
    length = stream.read(LENGTH_BYTES)
    content = stream.read(int.from_bytes(length, "big"))
    if len(length) < LENGTH_BYTES:
        os._exit(0)
    return content


def _vocabulary_of(tokens: TokensOfModel) -> Vocabulary:
    """Return a vocabulary whose texts are tokenized byte by byte: how is no matter here, only how long it takes."""
    of_byte = {token: token_id for token_id, token in enumerate(tokens.token_bytes) if len(token) == 1}

    def encode(text: str) -> list[int]:
        return [of_byte[bytes([byte])] for byte in text.encode() if bytes([byte]) in of_byte]

    return Vocabulary(tokens.token_bytes, frozenset(tokens.special_token_ids), True, encode)


def _limit_memory() -> None:
    """Let this process have no more than so much beyond what it has now, and leave no core behind."""
    num_pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    most_bytes = num_pages * resource.getpagesize() + MEMORY_LIMIT_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most_bytes, most_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _allow_time() -> None:
    """Let the system kill this process if it computes for longer than a trial may."""
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + CPU_LIMIT_S, most))


def _try(ll_tokenizer: Any, grammar: str, vocab_size: int) -> Verdict:
    try:
        compile_grammar(ll_tokenizer, grammar, vocab_size)
    except GrammarError as error:
        return Verdict(str(error))
    return Verdict(None)


def _work(frames: "SimpleQueue[bytes]", out: BinaryIO) -> None:
    tokens = msgspec.msgpack.decode(frames.get(), type=TokensOfModel)
    vocab_size = len(tokens.token_bytes)
    ll_tokenizer = make_ll_tokenizer(_vocabulary_of(tokens), tokens.eos_token_ids or [0], vocab_size)
    _try(ll_tokenizer, "", vocab_size)  # what is loaded late is loaded now
    _limit_memory()
    answer: msgspec.Struct = Ready()
    while True:
        out.write(write_frame(answer))
        out.flush()
        trial = msgspec.msgpack.decode(frames.get(), type=Trial)
        _allow_time()
        answer = _try(ll_tokenizer, trial.grammar, vocab_size)


def main() -> None:
    """Work on a thread with a small stack; read on this one, so that the end of the frontend is never missed."""
    os.nice(NICENESS)
    frames: SimpleQueue[bytes] = SimpleQueue()
    threading.stack_size(STACK_BYTES)

    def work() -> None:
        try:
            _work(frames, sys.stdout.buffer)
        finally:
            os._exit(1)  # whatever it was, the frontend sees that no answer comes

    threading.Thread(target=work, daemon=True).start()
    while True:
        frames.put(_read_frame(sys.stdin.buffer))


if __name__ == "__main__":
    main()
