import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diptych.core.errors import ModelError
from diptych.models.ir import read_ir, sampled_digest, weights_key


def test_a_summary_says_what_the_graph_is(shared_ir: Path) -> None:
    summary = read_ir(shared_ir / "openvino_model.xml")
    assert summary.bin_bytes == (shared_ir / "openvino_model.bin").stat().st_size
    assert summary.vocab_size == 260
    assert summary.kv_shapes == [(1, 32)] * 2
    assert summary.kv_elements_per_token == 64
    assert summary.weights_precision == "f16"
    assert summary.tokenizer is None


def test_a_tokenizer_carries_what_the_converter_noted(shared_ir: Path) -> None:
    summary = read_ir(shared_ir / "openvino_tokenizer.xml")
    assert summary.tokenizer == "BPETokenizer"
    assert summary.runtime_info["eos_token_id"].isdigit()
    assert "message['content']" in summary.runtime_info["chat_template"]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_every_shortened_graph_is_refused(shared_ir: Path, tmp_path: Path, data: st.DataObject) -> None:
    whole = (shared_ir / "openvino_tokenizer.xml").read_bytes().rstrip()
    xml = tmp_path / "openvino_tokenizer.xml"
    xml.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    shutil.copy(shared_ir / "openvino_tokenizer.bin", tmp_path)
    with pytest.raises(ModelError, match="truncated or damaged"):
        read_ir(xml)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_every_shortened_bin_is_refused(shared_ir: Path, tmp_path: Path, data: st.DataObject) -> None:
    whole = (shared_ir / "openvino_model.bin").read_bytes()
    shutil.copy(shared_ir / "openvino_model.xml", tmp_path)
    (tmp_path / "openvino_model.bin").write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(ModelError, match=r"openvino_model\.bin is truncated"):
        read_ir(tmp_path / "openvino_model.xml")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("<html/>", "is no OpenVINO IR"),
        ("<!DOCTYPE net [<!ENTITY a 'b'>]><net>&a;</net>", "declares a document type"),
        ('<net><layer type="Const"><data offset="x" size="4"/></layer></net>', "damaged"),
    ],
)
def test_other_documents_are_refused(tmp_path: Path, text: str, error: str) -> None:
    xml = tmp_path / "openvino_model.xml"
    xml.write_text(text)
    with pytest.raises(ModelError, match=error):
        read_ir(xml)


def test_missing_files_are_named(tmp_path: Path, shared_ir: Path) -> None:
    with pytest.raises(ModelError, match=r"openvino_model\.xml is missing"):
        read_ir(tmp_path / "openvino_model.xml")
    shutil.copy(shared_ir / "openvino_model.xml", tmp_path)
    with pytest.raises(ModelError, match=r"openvino_model\.bin is missing"):
        read_ir(tmp_path / "openvino_model.xml")


def test_the_key_is_the_same_for_a_copy_and_another_after_any_change(tiny_ir: Path, shared_ir: Path) -> None:
    assert weights_key(tiny_ir / "openvino_model.xml") == weights_key(shared_ir / "openvino_model.xml")
    weights = tiny_ir / "openvino_model.bin"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    assert weights_key(tiny_ir / "openvino_model.xml") != weights_key(shared_ir / "openvino_model.xml")


def test_a_digest_covers_size_head_tail_and_samples(tmp_path: Path) -> None:
    size_bytes = 16 * 2**20
    path = tmp_path / "weights"
    digests = set()
    for changed in (None, 0, size_bytes // 2, size_bytes - 1):
        content = bytearray(size_bytes)
        if changed is not None:
            content[changed] = 1
        path.write_bytes(content)
        digests.add(sampled_digest(path))
    path.write_bytes(bytes(size_bytes + 1))
    digests.add(sampled_digest(path))
    assert len(digests) == 5
