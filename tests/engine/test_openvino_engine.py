"""The CPU engine on real weights: where KV lies never shows in a bit, how steps were cut at most in rounding.

On a CPU with AVX2 alone, kernels of different row counts sum in different orders: logits differ by some 1e-5, which has
never changed a greedy token in f32. Where only block tables differ, every bit is the same.
"""

import mmap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openvino
import pytest

from diptych.core.errors import EngineError
from diptych.core.ids import BlockId
from diptych.engine.base import Logits, Row, WarmUp
from diptych.engine.openvino_engine import OpenVinoEngine, choose_kv_dtype
from diptych.frontend.text.tokenizer import Tokenizer

pytestmark = pytest.mark.slow
NUM_BLOCKS = 30
FRESH = 0xAA
"""What memory is full of before a step writes to it."""
ROUNDING = 5e-4
"""Logits of other tokens or other KV differ by whole units."""
TEXT = (
    "The lighthouse keeper climbed the stairs every evening, counted the ships on the horizon, and wrote their names "
    "into a book that nobody but the sea would ever read. One night a ship came that had no name at all. "
)


class BoundEngine:
    """An engine with memory of its own."""

    def __init__(self, model_dir: Path, kv_dtype: str) -> None:
        self.engine = OpenVinoEngine(model_dir, frozenset({2}), 1, kv_dtype)  # type: ignore[arg-type]
        self.layout = self.engine.layout
        self.memory = mmap.mmap(-1, NUM_BLOCKS * self.layout.block_bytes)
        self.engine.bind(memoryview(self.memory), NUM_BLOCKS)

    def forget(self) -> None:
        """Make all memory fresh."""
        self.bytes[:] = FRESH

    @property
    def bytes(self) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        return np.frombuffer(self.memory, np.uint8)

    def step(self, *rows: Row) -> Logits:
        """Return a copy of the logits: the engine's own memory holds until the next step."""
        return self.engine.step(rows).copy()

    def read(self, prompt: list[int], sizes: Sequence[int], table: list[BlockId]) -> Logits:
        """Compute a prompt in chunks of `sizes`, the last of them repeated; return the logits after it."""
        begin, chunks = 0, list(sizes)
        while True:
            size = chunks.pop(0) if len(chunks) > 1 else chunks[0]
            if len(prompt) - begin - size == 1:
                size += 1
            is_last = begin + size >= len(prompt)
            logits = self.step(Row(prompt[begin : begin + size], begin, table, int(is_last)))
            begin += size
            if is_last:
                return logits

    def changed_spans(self) -> set[BlockId]:
        """Return the blocks in which a byte is not fresh."""
        changed = set()
        for number in range(NUM_BLOCKS):
            spans = self.layout.block_spans(BlockId(number), NUM_BLOCKS)
            if any((self.bytes[begin : begin + size] != FRESH).any() for begin, size in spans):
                changed.add(BlockId(number))
        return changed


def assert_same(logits: Logits, wanted: Logits) -> None:
    """Fail unless both are the same up to rounding, and choose the same tokens."""
    assert logits.shape == wanted.shape
    assert np.abs(logits - wanted).max() < ROUNDING
    assert np.array_equal(logits.argmax(axis=1), wanted.argmax(axis=1))


def table(*numbers: int) -> list[BlockId]:
    return [BlockId(number) for number in numbers]


@pytest.fixture(scope="module")
def f32(model_dir: Path) -> BoundEngine:
    return BoundEngine(model_dir, "f32")


@pytest.fixture(scope="module")
def prompt(tokenizer: Tokenizer) -> list[int]:
    return tokenizer.encode(TEXT * 4)[:140]


def test_a_block_is_one_run_of_bytes(f32: BoundEngine) -> None:
    layout = f32.layout
    (region,) = layout.regions
    assert layout.block_size == 32
    assert len(region.tensors) == 2 * 30, "keys and values of 30 layers"
    assert layout.block_bytes == 2 * 30 * 3 * 32 * 64 * 4
    assert layout.block_spans(BlockId(3), NUM_BLOCKS) == [(3 * layout.block_bytes, layout.block_bytes)]


def test_kv_lands_in_the_blocks_of_the_table_and_nowhere_else(f32: BoundEngine, prompt: list[int]) -> None:
    f32.forget()
    f32.step(Row(prompt[:64], 0, table(7, 2, 9), 1), Row(prompt[:5], 0, table(20), 0))

    assert f32.changed_spans() == {7, 2, 20}
    # Every piece (keys and values of every layer) of a full block is written to its last byte.
    (region,) = f32.layout.regions
    begin = 7 * f32.layout.block_bytes
    tokens = f32.bytes[begin : begin + f32.layout.block_bytes].reshape(len(region.tensors), 3 * 32, 64 * 4)
    assert (tokens != FRESH).any(axis=2).all()


def test_it_does_not_matter_which_blocks_hold_the_kv(f32: BoundEngine, prompt: list[int]) -> None:
    consecutive, scattered = table(0, 1, 2, 3, 4), table(23, 4, 29, 11, 0)
    answers = []
    for blocks in (consecutive, scattered):
        f32.forget()
        logits = [f32.read(prompt, [50], blocks)]
        for step in range(4):
            logits.append(f32.step(Row([int(logits[-1].argmax())], len(prompt) + step, blocks, 1)))
        kv = [f32.bytes[n * f32.layout.block_bytes : (n + 1) * f32.layout.block_bytes].copy() for n in blocks]
        answers.append((np.concatenate(logits), np.concatenate(kv)))

    assert np.array_equal(answers[0][0], answers[1][0])
    assert np.array_equal(answers[0][1], answers[1][1])


def test_logits_of_one_row_are_those_that_it_has_among_all(f32: BoundEngine, prompt: list[int]) -> None:
    parts = [prompt[:40], prompt[40:75], prompt[75:140]]
    tables = [table(0, 1), table(2, 3), table(4, 5, 6)]
    every = f32.step(*[Row(part, 0, blocks, 1) for part, blocks in zip(parts, tables, strict=True)])
    assert every.shape == (3, f32.engine.vocab_size)
    for sampled in ([0], [1], [2], [0, 2]):
        rows = [Row(part, 0, tables[number], number in sampled) for number, part in enumerate(parts)]
        assert_same(f32.step(*rows), every[sampled])
    assert f32.step(Row(parts[0], 0, tables[0], 0)).shape == (0, f32.engine.vocab_size)


@pytest.mark.parametrize("sizes", [[2], [16], [31, 33], [100], [256]], ids=str)
def test_logits_do_not_depend_on_how_the_prompt_is_cut(f32: BoundEngine, prompt: list[int], sizes: list[int]) -> None:
    whole = f32.step(Row(prompt, 0, table(0, 1, 2, 3, 4), 1))

    assert_same(f32.read(prompt, sizes, table(5, 6, 7, 8, 9)), whole)


def test_logits_do_not_depend_on_who_else_is_in_the_step(f32: BoundEngine, prompt: list[int]) -> None:
    f32.read(prompt, [256], table(0, 1, 2, 3, 4))
    alone = f32.step(Row([77], len(prompt), table(0, 1, 2, 3, 4), 1))

    others = [Row(prompt[:20], 0, table(10), 1), Row(prompt[20:60], 0, table(11, 12), 0)]
    together = f32.step(others[0], Row([77], len(prompt), table(0, 1, 2, 3, 4), 1), others[1])
    assert_same(together[1:2], alone)

    for number in (15, 16, 17):
        f32.read(prompt[:20], [256], table(number))
    decoding = [Row([5], 20, table(number), 1) for number in (15, 16, 17)]
    batched = f32.step(*decoding, Row([77], len(prompt), table(0, 1, 2, 3, 4), 1))
    assert_same(batched[3:], alone)


def test_a_prefix_in_other_requests_blocks_is_as_good_as_an_own_one(f32: BoundEngine, prompt: list[int]) -> None:
    whole = f32.read(prompt, [256], table(0, 1, 2, 3, 4))

    assert_same(f32.step(Row(prompt[64:], 64, table(0, 1, 20, 21, 22), 1)), whole)


def test_warm_up_writes_into_its_own_blocks_and_measures(f32: BoundEngine) -> None:
    f32.forget()
    speed = f32.engine.warm_up(WarmUp(64, (1, 2), True), table(10, 11, 12))

    assert 1 < speed < 1e6
    assert f32.changed_spans() <= {10, 11, 12}


def test_quantized_kv_has_a_region_for_each_size(model_dir: Path, f32: BoundEngine, prompt: list[int]) -> None:
    u8 = BoundEngine(model_dir, "u8")
    assert u8.layout.block_size == f32.layout.block_size
    assert u8.layout.fingerprint != f32.layout.fingerprint
    assert u8.layout.block_bytes < f32.layout.block_bytes / 3
    assert sum(len(region.tensors) for region in u8.layout.regions) == 60
    u8.forget()

    logits = u8.read(prompt, [256], table(9, 3, 27, 5, 14))

    assert u8.changed_spans() == {9, 3, 27, 5, 14}
    wanted = f32.read(prompt, [256], table(0, 1, 2, 3, 4))
    assert int(logits.argmax()) in np.argsort(wanted[0])[-3:], "eight bits change little"


def test_bf16_is_the_choice_where_the_cpu_has_it_and_an_error_that_says_so_where_not(model_dir: Path) -> None:
    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        assert choose_kv_dtype("auto") == "bf16"
        assert OpenVinoEngine(model_dir, frozenset(), 1, "auto").name == "openvino bf16 KV"
        return
    assert choose_kv_dtype("auto") == "f32"
    with pytest.raises(EngineError, match="--kv-dtype bf16") as raised:
        OpenVinoEngine(model_dir, frozenset(), 1, "bf16")
    assert len(str(raised.value).splitlines()) == 1


def test_a_folder_without_a_model_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "openvino_model.xml").write_text("<net/>")
    with pytest.raises(EngineError, match="cannot be served") as raised:
        OpenVinoEngine(tmp_path, frozenset(), 1, "f32")
    assert len(str(raised.value).splitlines()) == 1
