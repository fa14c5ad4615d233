import json
from pathlib import Path

import pytest

from diptych.core.errors import ModelError
from diptych.models.folder import check_folder, load_folder
from diptych.models.resolution import resolve


def test_a_folder_is_served_where_it_lies(tiny_ir: Path, cache: Path) -> None:
    (tiny_ir / "config.json").write_text(json.dumps({"max_position_embeddings": 512, "eos_token_id": 5}))
    folder = resolve(str(tiny_ir))
    assert (folder.path, folder.name, folder.context_length) == (tiny_ir, "tiny-ir", 512)
    assert folder.eos_token_ids == {2, 5}  # of the tokenizer and of config.json
    assert not cache.exists()


def test_what_nobody_says_is_none(tiny_ir: Path) -> None:
    folder = load_folder(tiny_ir, "x")
    assert folder.context_length is None
    assert folder.license is None


def test_a_template_in_the_tokenizer_or_beside_it_counts(tiny_ir: Path) -> None:
    assert check_folder(tiny_ir).has_chat_template
    tokenizer = tiny_ir / "openvino_tokenizer.xml"
    tokenizer.write_text(tokenizer.read_text().replace("<chat_template ", "<no_template "))
    assert not check_folder(tiny_ir).has_chat_template
    (tiny_ir / "chat_template.jinja").write_text("{{ messages }}")
    assert check_folder(tiny_ir).has_chat_template


@pytest.mark.parametrize("name", ["openvino_tokenizer.xml", "openvino_detokenizer.xml"])
def test_a_folder_without_tokenizer_says_how_to_make_one(tiny_ir: Path, name: str) -> None:
    (tiny_ir / name).unlink()
    with pytest.raises(ModelError, match=rf"has no {name}; .*convert_tokenizer"):
        resolve(str(tiny_ir))


@pytest.mark.parametrize(
    ("file_name", "error"),
    [
        ("model.safetensors", "optimum-cli export openvino"),
        ("pytorch_model-00001-of-00002.bin", "optimum-cli export openvino"),
        ("weights.gguf", "give the file itself"),
        ("openvino_language_model.xml", "reads images"),
        ("readme.txt", r"openvino_model\.xml is missing"),
    ],
)
def test_other_folders_are_named_for_what_they_hold(tmp_path: Path, file_name: str, error: str) -> None:
    (tmp_path / file_name).touch()
    with pytest.raises(ModelError, match=error):
        resolve(str(tmp_path))


def test_a_wheel_makes_no_sense_for_a_folder(tiny_ir: Path, tiny_wheel: Path) -> None:
    with pytest.raises(ModelError, match="needs no wheel"):
        resolve(str(tiny_ir), local_wheel=tiny_wheel)
