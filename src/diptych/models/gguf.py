"""Reads the header of a GGUF file: what the model is, and whether the file is whole. Never touches the weights.

The layout is that of the format's public specification (ggml, docs/gguf.md): magic, version, two counts, the metadata,
one record a tensor, then the tensors' bytes, aligned. The native reader that converts the file trusts it and dies of a
segmentation fault where it is cut short; so all is checked here first.
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

from diptych.core.errors import ModelError
from diptych.models.progress import format_bytes

_SUPPORTED_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT_BYTES = 32
_MAX_DIMENSIONS = 8
_MAX_ARRAY_DEPTH = 4
_NUMBER_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9

_TENSOR_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}
"""Tensor type to (name, elements a block, bytes a block)."""

Number = int | float | bool


@dataclass(frozen=True, slots=True)
class GgufArray:
    """An array in the metadata, of which only the length is kept (vocabularies are long)."""

    length: int


Value = Number | str | GgufArray


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where a tensor lies in the file."""

    name: str
    num_elements: int
    type_name: str
    offset_bytes: int
    """From the start of the tensors' part."""
    size_bytes: int
    """0 for a type that this reader does not know."""


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """All of a GGUF file but its weights."""

    path: Path
    size_bytes: int
    metadata: dict[str, Value]
    tensors: tuple[GgufTensor, ...]
    data_offset_bytes: int
    """Where the tensors' part starts."""

    @property
    def expected_size_bytes(self) -> int:
        """The least size of a whole file: the end of its last tensor."""
        ends = (tensor.offset_bytes + tensor.size_bytes for tensor in self.tensors)
        return self.data_offset_bytes + max(ends, default=0)

    @property
    def architecture(self) -> str:
        """Family of the model, such as `llama`."""
        return self.text("general.architecture") or "unknown"

    @property
    def num_split_files(self) -> int:
        """Over how many files the model is spread; 1 for a whole one."""
        return self.number("split.count") or 1

    @property
    def weights_precision(self) -> str | None:
        """The tensor type that most elements have; None without tensors."""
        num_elements: dict[str, int] = {}
        for tensor in self.tensors:
            num_elements[tensor.type_name] = num_elements.get(tensor.type_name, 0) + tensor.num_elements
        return max(num_elements, key=num_elements.__getitem__, default=None)

    def text(self, key: str) -> str | None:
        """Return a metadata string; None if it is absent or no string."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else None

    def number(self, key: str) -> int | None:
        """Return a metadata integer; None if it is absent or no integer."""
        value = self.metadata.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None


def read_gguf(path: Path) -> GgufHeader:
    """Read the header of `path` and check that every tensor's bytes are there.

    Raises: ModelError if the file cannot be opened, is no GGUF file, is of an unknown version, or is cut short.
    """
    try:
        with path.open("rb") as file:
            size_bytes = path.stat().st_size
            if size_bytes == 0:
                raise ModelError(f"{path} is empty; fetch it again")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                header = _parse(path, content, size_bytes)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error
    if header.expected_size_bytes > size_bytes:
        raise _truncated(path, size_bytes, format_bytes(header.expected_size_bytes))
    return header


def _parse(path: Path, content: mmap.mmap, size_bytes: int) -> GgufHeader:
    _check_magic(path, content)
    cursor = _Cursor(content, position=4)
    try:
        _check_version(path, cursor.number("I"))
        num_tensors, num_metadata = cursor.number("Q"), cursor.number("Q")
        metadata = dict(_read_entry(cursor) for _ in range(num_metadata))
        tensors = tuple(_read_tensor(cursor) for _ in range(num_tensors))
    except _EndOfFileError:
        raise _truncated(path, size_bytes, "a longer header") from None
    except _NotGgufError as error:
        raise ModelError(f"{path} is damaged: {error}; fetch it again") from None
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT_BYTES)
    if not isinstance(alignment, int) or alignment <= 0:
        raise ModelError(f"{path} is damaged: its alignment is {alignment!r}; fetch it again")
    return GgufHeader(path, size_bytes, metadata, tensors, -(-cursor.position // alignment) * alignment)


def _truncated(path: Path, size_bytes: int, expected: str) -> ModelError:
    return ModelError(
        f"{path} is truncated: {format_bytes(size_bytes)}, its header asks for {expected}; fetch it again"
    )


def _check_magic(path: Path, content: mmap.mmap) -> None:
    if content[:4] == b"GGUF":
        return
    if content[:20] == b"version https://git-":
        raise ModelError(f"{path} is a git-lfs pointer, not the model; run `git lfs pull` where it lies")
    raise ModelError(f"{path} is not a GGUF file (it starts with {bytes(content[:4])!r})")


def _check_version(path: Path, version: int) -> None:
    if version in _SUPPORTED_VERSIONS:
        return
    if version >= 1 << 24:
        raise ModelError(f"{path} is a big-endian GGUF file, which cannot be read here; get the little-endian one")
    raise ModelError(f"{path} has GGUF version {version}; versions 2 and 3 can be read: get a newer file of the model")


class _EndOfFileError(Exception):
    """The header goes on where the file ends."""


class _NotGgufError(Exception):
    """The header says what no GGUF header may say."""


class _Cursor:
    """Reads forward through the mapped file."""

    def __init__(self, content: mmap.mmap, position: int) -> None:
        self._content = content
        self._end = len(content)
        self.position = position

    def skip(self, num_bytes: int) -> int:
        """Move on by `num_bytes` and return where it was."""
        start = self.position
        if num_bytes > self._end - start:
            raise _EndOfFileError
        self.position = start + num_bytes
        return start

    def number(self, number_format: str) -> int:
        """Read one little-endian integer."""
        value = self.scalar(number_format)
        return int(value)

    def scalar(self, number_format: str) -> Number:
        """Read one little-endian number or truth value."""
        layout = "<" + number_format
        value: Number = struct.unpack_from(layout, self._content, self.skip(struct.calcsize(layout)))[0]
        return value

    def skip_string(self) -> None:
        """Move behind a string."""
        self.skip(self.number("Q"))

    def string(self) -> str:
        """Read a string; bytes that are no UTF-8 become question marks."""
        num_bytes = self.number("Q")
        start = self.skip(num_bytes)
        return self._content[start : start + num_bytes].decode("utf-8", errors="replace")


def _read_entry(cursor: _Cursor) -> tuple[str, Value]:
    return cursor.string(), _read_value(cursor, cursor.number("I"))


def _read_value(cursor: _Cursor, kind: int) -> Value:
    if kind == _STRING:
        return cursor.string()
    if kind == _ARRAY:
        return _skip_array(cursor)
    if kind not in _NUMBER_FORMATS:
        raise _NotGgufError(f"metadata of unknown type {kind}")
    return cursor.scalar(_NUMBER_FORMATS[kind])


def _skip_array(cursor: _Cursor, depth: int = 0) -> GgufArray:
    kind, length = cursor.number("I"), cursor.number("Q")
    if kind in _NUMBER_FORMATS:
        cursor.skip(struct.calcsize("<" + _NUMBER_FORMATS[kind]) * length)
    elif kind == _STRING:
        for _ in range(length):
            cursor.skip_string()
    elif kind == _ARRAY and depth < _MAX_ARRAY_DEPTH:
        for _ in range(length):
            _skip_array(cursor, depth + 1)
    else:
        raise _NotGgufError(f"an array of unknown type {kind}" if kind != _ARRAY else "arrays nested too deep")
    return GgufArray(length)


def _read_tensor(cursor: _Cursor) -> GgufTensor:
    name, num_dimensions = cursor.string(), cursor.number("I")
    if num_dimensions > _MAX_DIMENSIONS:
        raise _NotGgufError(f"tensor {name!r} has {num_dimensions} dimensions")
    num_elements = 1
    for _ in range(num_dimensions):
        num_elements *= cursor.number("Q")
    type_id, offset_bytes = cursor.number("I"), cursor.number("Q")
    type_name, block_elements, block_bytes = _TENSOR_TYPES.get(type_id, (f"type {type_id}", 1, 0))
    return GgufTensor(name, num_elements, type_name, offset_bytes, -(-num_elements // block_elements) * block_bytes)
