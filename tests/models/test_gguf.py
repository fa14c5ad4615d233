import struct
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.core.errors import ModelError
from diptych.models.gguf import GgufArray, read_gguf

GgufBuilder = Callable[[Mapping[str, object], Mapping[str, Any]], bytes]


def _error_of(content: bytes) -> str | None:
    """The error that a file of this content gives; None if it can be read."""
    with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
        file.write(content)
        file.flush()
        try:
            read_gguf(Path(file.name))
        except ModelError as error:
            return str(error)
        return None


def test_a_header_tells_the_metadata_and_where_tensors_lie(tiny_gguf: Path) -> None:
    header = read_gguf(tiny_gguf)
    assert header.architecture == "llama"
    assert header.number("llama.context_length") == 256
    assert header.metadata["tokenizer.ggml.tokens"] == GgufArray(260)
    assert header.metadata["tokenizer.ggml.add_bos_token"] is False
    assert header.metadata["llama.rope.freq_base"] == 10000.0
    assert header.weights_precision == "F16"
    assert header.expected_size_bytes == header.size_bytes == tiny_gguf.stat().st_size
    assert [tensor.name for tensor in header.tensors][:2] == ["token_embd.weight", "blk.0.attn_norm.weight"]


def test_a_truth_value_is_no_number(tiny_gguf: Path) -> None:
    header = read_gguf(tiny_gguf)
    assert header.number("tokenizer.ggml.add_bos_token") is None
    assert header.number("general.architecture") is None
    assert header.text("llama.block_count") is None


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_shortened_file_is_refused(tiny_gguf_bytes: bytes, data: st.DataObject) -> None:
    size_bytes = data.draw(st.integers(0, len(tiny_gguf_bytes) - 1))
    error = _error_of(tiny_gguf_bytes[:size_bytes])
    assert error is not None
    assert "\n" not in error
    if size_bytes >= 4:
        assert "is truncated" in error


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_damage_to_the_header_raises_anything_else(tiny_gguf_bytes: bytes, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, 12_000))
    damage = data.draw(st.binary(min_size=1, max_size=9))
    damaged = tiny_gguf_bytes[:position] + damage + tiny_gguf_bytes[position + len(damage) :]
    _error_of(damaged)  # must come back


@given(st.binary(max_size=200))
def test_no_bytes_after_the_magic_raise_anything_else(content: bytes) -> None:
    assert _error_of(b"GGUF" + struct.pack("<I", 3) + content) is not None or len(content) >= 16


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "is empty"),
        (b"<html>not found</html>", "is not a GGUF file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs pull"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "GGUF version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    ],
)
def test_other_files_are_named_for_what_they_are(content: bytes, text: str) -> None:
    error = _error_of(content)
    assert error is not None
    assert text in error.replace("git lfs", "git-lfs")


def test_nested_arrays_end(build_gguf: GgufBuilder) -> None:
    content = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q1s", 1, b"k") + struct.pack("<I", 9)
    error = _error_of(content + struct.pack("<IQ", 9, 1) * 5000)
    assert error is not None
    assert "nested too deep" in error


def test_quantized_tensors_take_whole_blocks(tmp_path: Path, build_gguf: GgufBuilder) -> None:
    whole = build_gguf({"general.architecture": "llama"}, {"w": np.zeros(64, np.float32)})
    q4_1 = whole.replace(struct.pack("<QII", 64, 0, 0), struct.pack("<QII", 64, 3, 0))  # type F32 to Q4_1
    path = tmp_path / "q.gguf"
    path.write_bytes(q4_1)
    tensor = read_gguf(path).tensors[0]
    assert (tensor.type_name, tensor.size_bytes) == ("Q4_1", 2 * 20)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot read .*No such file"):
        read_gguf(tmp_path / "absent.gguf")
