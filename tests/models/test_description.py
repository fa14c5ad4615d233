from pathlib import Path

import pytest

from diptych.core.errors import ModelError
from diptych.models.catalog import CATALOG, DEFAULT_MODEL, CatalogModel
from diptych.models.description import describe, list_models
from diptych.models.resolution import resolve


def test_a_gguf_file_and_its_ir_are_described_alike(tiny_gguf: Path, cache: Path) -> None:
    file = describe(str(tiny_gguf))
    assert (file.form, file.name, file.where) == ("GGUF", "tiny", str(tiny_gguf))
    assert (file.weights_precision, file.tokenizer) == ("F16", "gpt2")
    assert not cache.exists()
    folder = describe(str(resolve(str(tiny_gguf)).path))
    assert (folder.form, folder.weights_precision, folder.tokenizer) == ("OpenVINO IR", "f16", "BPETokenizer")
    for description in (file, folder):
        assert (description.num_layers, description.vocab_size) == (1, 260)
        assert description.kv_bytes_per_token == 2 * 32 * 2  # keys and values, 32 wide, two bytes
        assert description.has_chat_template
        assert description.eos_token_ids == (2,)


def test_the_list_shows_what_is_cached_and_what_can_be(
    tiny_catalog: CatalogModel, tiny_wheel: Path, tiny_gguf: Path, cache: Path
) -> None:
    assert {row.model: row.is_cached for row in list_models()} == {DEFAULT_MODEL: False, "tiny": False}
    resolve("tiny", local_wheel=tiny_wheel)
    resolve(str(tiny_gguf))
    rows = {row.model: row for row in list_models()}
    assert {name: row.is_cached for name, row in rows.items()} == {
        DEFAULT_MODEL: False,
        "tiny": True,
        str(tiny_gguf): True,
    }
    assert rows["tiny"].where == str(cache / "models" / tiny_catalog.key)
    assert rows["tiny"].size_bytes > 200_000
    assert rows[DEFAULT_MODEL].size_bytes == CATALOG[DEFAULT_MODEL].size_bytes


def test_a_cached_name_is_described(tiny_catalog: CatalogModel, tiny_wheel: Path, cache: Path) -> None:
    with pytest.raises(ModelError, match=r"tiny is not on this machine yet; .*diptych model pull tiny"):
        describe("tiny")
    resolve("tiny", local_wheel=tiny_wheel)
    description = describe("tiny")
    assert description.name == "tiny"
    assert description.source == f"{tiny_catalog.file_name} sha256:{tiny_catalog.sha256}"
    assert (description.license, description.architecture) == ("Apache-2.0", "llama")


def test_a_repository_that_was_not_pulled_is_not_asked_for(cache: Path) -> None:
    with pytest.raises(ModelError, match="org/name@v1 is not on this machine yet"):
        describe("org/name@v1")
