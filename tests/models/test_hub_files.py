import pytest

from diptych.core.errors import ModelError
from diptych.models.hub_files import HubChoice, HubFile, HubListing, choose_files
from diptych.models.sources import HubSource

IR_NAMES = tuple(f"openvino_{part}.{end}" for part in ("model", "tokenizer", "detokenizer") for end in ("xml", "bin"))


def _choose(names: tuple[str, ...], selector: str | None = None) -> HubChoice:
    files = [HubFile(name, 10**6) for name in names]
    return choose_files(HubSource("org/name", None, selector), HubListing(commit="c0", files=files, license=None))


def test_an_ir_repository_gives_its_ir_and_settings_alone() -> None:
    extra = ("config.json", "generation_config.json", "chat_template.jinja")
    others = ("README.md", "model.safetensors", "onnx/model.onnx", "openvino_config.txt", "deep/config.json")
    choice = _choose((*IR_NAMES, *extra, *others, "m.Q8_0.gguf"))
    assert {file.name for file in choice.files} == {*IR_NAMES, *extra}
    assert (choice.gguf, choice.commit, choice.size_bytes) == (None, "c0", 9 * 10**6)
    assert choice.needed_bytes == choice.size_bytes


def test_a_selector_asks_for_gguf_even_beside_ir() -> None:
    choice = _choose((*IR_NAMES, "m.Q8_0.gguf"), "Q8_0")
    assert choice.gguf == "m.Q8_0.gguf"
    assert choice.needed_bytes > 2 * choice.size_bytes


@pytest.mark.parametrize(
    ("names", "selector", "chosen"),
    [
        (("only-IQ2_XS.gguf", "mmproj-f16.gguf", "x.imatrix.gguf"), None, "only-IQ2_XS.gguf"),
        (("m-Q8_0.gguf", "m-Q4_K_M.gguf", "m-F16.gguf"), None, "m-Q4_K_M.gguf"),
        (("m.q8_0.gguf", "m.bf16.gguf", "m.f16.gguf"), None, "m.q8_0.gguf"),
        (("m-Q8_0-00001-of-00002.gguf", "m-Q8_0-00002-of-00002.gguf", "m-Q4_0.gguf"), None, "m-Q4_0.gguf"),
        (("m-Q4_0.gguf", "m-Q4_0_4_4.gguf", "m-Q8_0.gguf"), "q4_0", "m-Q4_0.gguf"),
        (("m-F16.gguf", "m-BF16.gguf"), "F16", "m-F16.gguf"),
        (("Q4_0/m.gguf", "sub/m-Q8_0.gguf"), "sub/m-Q8_0.gguf", "sub/m-Q8_0.gguf"),
    ],
)
def test_the_gguf_file_that_is_meant(names: tuple[str, ...], selector: str | None, chosen: str) -> None:
    assert _choose(names, selector).gguf == chosen


@pytest.mark.parametrize(
    ("names", "selector", "error"),
    [
        (("a-Q5_0.gguf", "b-Q5_1.gguf"), None, r"not clear .*of a-Q5_0\.gguf \(1\.0 MB\), b-Q5_1\.gguf"),
        (("a-Q8_0.gguf", "b-Q8_0.gguf"), "Q8_0", "no single file fits 'Q8_0'; ask for one as org/name:FILE"),
        (("a-Q8_0.gguf",), "Q4_0", "no single file fits 'Q4_0'"),
        (("a-Q8_0.gguf",), "b.gguf", r"no single file fits 'b\.gguf'"),
        (("m-Q8_0-00001-of-00002.gguf",), "m-Q8_0-00001-of-00002.gguf", "is one part of a model"),
        (IR_NAMES, "Q4_0", "holds no GGUF file"),
        (("model.safetensors",), None, "neither OpenVINO IR nor GGUF; convert it with .*optimum-cli"),
        (IR_NAMES[:2], None, r"no openvino_detokenizer\.xml"),
        ((), None, "neither OpenVINO IR nor GGUF"),
    ],
)
def test_an_unclear_choice_is_one_line(names: tuple[str, ...], selector: str | None, error: str) -> None:
    with pytest.raises(ModelError, match=error):
        _choose(names, selector)
