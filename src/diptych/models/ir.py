"""Reads OpenVINO IR (an `.xml` graph and a `.bin` of constants) without OpenVINO: is it whole, and what is it?

Each constant in the graph names its place in the `.bin`, so the size that the `.bin` must have is known exactly. The
runtime itself maps the file and fails late or reads past its end; so all is checked here first.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

from diptych.core.errors import ModelError
from diptych.models.progress import format_bytes

_READ_CHUNK_BYTES = 1 << 20
_NUM_SAMPLES = 64
_SAMPLE_BYTES = 64 * 1024
_KV_RANK = 4


@dataclass(slots=True)
class IrSummary:
    """What one `.xml` says about itself."""

    bin_bytes: int = 0
    """The least size of the `.bin` beside it."""
    constant_bytes: dict[str, int] = field(default_factory=dict)
    """Bytes of constants by element type."""
    kv_shapes: list[tuple[int, int]] = field(default_factory=list)
    """(num_kv_heads, head_dim) of each key or value cache, in the order of the graph."""
    vocab_size: int | None = None
    """Last dimension of the output; None if it is not fixed."""
    tokenizer: str | None = None
    """Kind of tokenizer in the graph, such as `BPETokenizer`; None for other graphs."""
    runtime_info: dict[str, str] = field(default_factory=dict)
    """What the converter noted, such as `eos_token_id`."""

    @property
    def weights_precision(self) -> str | None:
        """The element type that takes the most bytes."""
        return max(self.constant_bytes, key=self.constant_bytes.__getitem__, default=None)

    @property
    def kv_elements_per_token(self) -> int | None:
        """Numbers that a token adds to the KV cache over all layers; None if the graph keeps no such state."""
        return sum(num_heads * head_dim for num_heads, head_dim in self.kv_shapes) or None


def read_ir(xml: Path) -> IrSummary:
    """Read `xml` and check that the `.bin` beside it is whole.

    Raises: ModelError if either is missing, unreadable, damaged or cut short.
    """
    summary = _parse(xml)
    weights = xml.with_suffix(".bin")
    try:
        size_bytes = weights.stat().st_size
    except FileNotFoundError:
        raise ModelError(f"{weights} is missing; fetch or convert the model again") from None
    except OSError as error:
        raise ModelError(f"cannot read {weights}: {error.strerror}") from error
    if size_bytes < summary.bin_bytes:
        raise ModelError(
            f"{weights} is truncated: {format_bytes(size_bytes)} where {xml.name} asks for "
            f"{format_bytes(summary.bin_bytes)}; fetch or convert the model again"
        )
    return summary


def weights_key(model_xml: Path) -> str:
    """Return 32 hex digits that name the weights: the same for a copy of the files, another for any other model.

    Covers the whole graph, and of the `.bin` its size and samples spread evenly: to read it all would cost seconds.
    """
    digest = hashlib.blake2b(model_xml.read_bytes(), digest_size=16)
    digest.update(sampled_digest(model_xml.with_suffix(".bin")))
    return digest.hexdigest()


def sampled_digest(path: Path) -> bytes:
    """Return 16 bytes that name a large file's content: its size, its first and last MB, and samples between."""
    size_bytes = path.stat().st_size
    digest = hashlib.blake2b(size_bytes.to_bytes(8, "little"), digest_size=16)
    with path.open("rb") as file:
        digest.update(file.read(_READ_CHUNK_BYTES))
        for sample in range(_NUM_SAMPLES):
            file.seek(size_bytes * sample // _NUM_SAMPLES)
            digest.update(file.read(_SAMPLE_BYTES))
        file.seek(max(size_bytes - _READ_CHUNK_BYTES, 0))
        digest.update(file.read(_READ_CHUNK_BYTES))
    return digest.digest()


def _parse(xml: Path) -> IrSummary:
    scanner = _Scanner()
    try:
        with xml.open("rb") as file:
            scanner.parser.ParseFile(file)
    except FileNotFoundError:
        raise ModelError(f"{xml} is missing; fetch or convert the model again") from None
    except OSError as error:
        raise ModelError(f"cannot read {xml}: {error.strerror}") from error
    except (expat.ExpatError, _NotIrError, ValueError) as error:
        raise ModelError(f"{xml} is truncated or damaged ({error}); fetch or convert the model again") from None
    if not scanner.is_network:
        raise ModelError(f"{xml} is no OpenVINO IR: it does not start with <net>")
    return scanner.summary


class _NotIrError(Exception):
    """The file holds what OpenVINO never writes."""


class _Scanner:
    """Collects a summary while the graph streams by; layers come one after another and never nest in what is read."""

    def __init__(self) -> None:
        self.summary = IrSummary()
        self.is_network = False
        self.parser = expat.ParserCreate()
        self.parser.StartElementHandler = self._on_start
        self.parser.CharacterDataHandler = self._on_text
        self.parser.EndElementHandler = self._on_end
        self.parser.StartDoctypeDeclHandler = self._on_doctype
        self._path: list[str] = []
        self._layer_type = ""
        self._text = ""

    def _on_doctype(self, *_declaration: object) -> None:
        raise _NotIrError("it declares a document type")

    def _on_start(self, tag: str, attributes: dict[str, str]) -> None:
        if not self._path:
            self.is_network = tag == "net"
        self._path.append(tag)
        self._text = ""
        if tag == "layer":
            self._layer_type = attributes.get("type", "")
            if self._layer_type.endswith("Tokenizer"):
                self.summary.tokenizer = self._layer_type
        elif tag == "data" and self._layer_type == "Const" and {"offset", "size"} <= attributes.keys():
            self._on_constant(attributes)
        elif tag == "data" and self._layer_type == "ReadValue":
            self._on_state(attributes)
        elif self._path[1:2] == ["rt_info"] and "value" in attributes:
            self.summary.runtime_info[tag] = attributes["value"]

    def _on_text(self, text: str) -> None:
        self._text += text

    def _on_end(self, tag: str) -> None:
        self._path.pop()
        if tag == "dim" and self._layer_type == "Result":
            size = int(self._text)
            self.summary.vocab_size = size if size > 0 else None
        elif tag == "layer":
            self._layer_type = ""

    def _on_constant(self, attributes: dict[str, str]) -> None:
        size_bytes = int(attributes["size"])
        self.summary.bin_bytes = max(self.summary.bin_bytes, int(attributes["offset"]) + size_bytes)
        kind = attributes.get("element_type", "unknown")
        self.summary.constant_bytes[kind] = self.summary.constant_bytes.get(kind, 0) + size_bytes

    def _on_state(self, attributes: dict[str, str]) -> None:
        """Note the shape `[batch, num_kv_heads, num_tokens, head_dim]`, whose first and third size are left open."""
        sizes = attributes.get("variable_shape", "").split(",")
        if len(sizes) == _KV_RANK and sizes[1].isdigit() and sizes[3].isdigit():
            self.summary.kv_shapes.append((int(sizes[1]), int(sizes[3])))
