from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.core.errors import ModelError
from diptych.models.catalog import CATALOG, DEFAULT_MODEL
from diptych.models.sources import CatalogSource, FolderSource, GgufSource, HubSource, parse_model


def test_catalog_names_come_first_and_ignore_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / DEFAULT_MODEL).mkdir()
    monkeypatch.chdir(tmp_path)
    assert parse_model(DEFAULT_MODEL.upper()) == CatalogSource(CATALOG[DEFAULT_MODEL])
    assert parse_model(f"./{DEFAULT_MODEL}") == FolderSource(tmp_path / DEFAULT_MODEL)


def test_existing_paths_come_before_hub_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "Model.GGUF").touch()
    monkeypatch.chdir(tmp_path)
    assert parse_model("org/name") == FolderSource(tmp_path / "org" / "name")
    assert parse_model("Model.GGUF") == GgufSource(tmp_path / "Model.GGUF")


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("org/name", HubSource("org/name", None, None)),
        ("org/name-1.5B_x@v1.0", HubSource("org/name-1.5B_x", "v1.0", None)),
        ("org/name@refs/pr/3:Q4_0", HubSource("org/name", "refs/pr/3", "Q4_0")),
        ("org/name:sub/model-q8_0.gguf", HubSource("org/name", None, "sub/model-q8_0.gguf")),
    ],
)
def test_hub_ids(text: str, source: HubSource) -> None:
    assert parse_model(text) == source
    assert source.text == text


@pytest.mark.parametrize(
    "text", ["/no/such", "./no", "../no", "~/no/such/thing", "no.gguf", "some/folder/no.gguf", "a/b/c", "", "."[:0]]
)
def test_what_looks_like_a_path_is_reported_as_one(text: str) -> None:
    with pytest.raises(ModelError, match="no such file or folder"):
        parse_model(text)


def test_a_misspelt_name_gets_a_hint() -> None:
    with pytest.raises(ModelError, match=f"did you mean {DEFAULT_MODEL}"):
        parse_model("smollm2-135m-instuct")
    with pytest.raises(ModelError, match=f"known names: .*{DEFAULT_MODEL}"):
        parse_model("gpt-17")


@pytest.mark.parametrize(
    ("file_name", "error"),
    [("a.whl", "--from"), ("openvino_model.xml", "give its folder"), ("a.safetensors", "neither a folder")],
)
def test_other_files_are_refused(tmp_path: Path, file_name: str, error: str) -> None:
    (tmp_path / file_name).touch()
    with pytest.raises(ModelError, match=error):
        parse_model(str(tmp_path / file_name))


@given(st.text(max_size=300))
def test_any_text_is_a_source_or_one_line(text: str) -> None:
    try:
        parse_model(text)
    except ModelError as error:
        assert text.count("\n") >= str(error).count("\n")
