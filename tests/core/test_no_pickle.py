"""Nothing that turns bytes into code: whoever reads a message, a file or a body must not be made to run it."""

import ast
from pathlib import Path

import diptych

# multiprocessing pickles whatever goes through its pipes.
FORBIDDEN_MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "marshal",
    "shelve",
    "joblib",
    "yaml",
    "multiprocessing",
}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
SOURCES = sorted(Path(diptych.__file__).parent.rglob("*.py"))


def imported(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names.add(node.module.partition(".")[0])
    return names


def test_no_module_reads_code_from_data() -> None:
    assert len(SOURCES) > 100
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert not imported(tree) & FORBIDDEN_MODULES, path
        calls = {
            node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert not calls & FORBIDDEN_CALLS, path


def test_numpy_reads_no_objects() -> None:
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        assert "allow_pickle=True" not in text, path
        assert "send_pyobj" not in text, path
        assert "recv_pyobj" not in text, path
