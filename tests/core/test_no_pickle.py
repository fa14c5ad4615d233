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
# A command that asks its own children over pipes that nobody else can open, and that serves nobody.
MAY_HAVE_CHILDREN = {"cli/plan.py"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
PACKAGE = Path(diptych.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))


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
        allowed = {"multiprocessing"} if str(path.relative_to(PACKAGE)) in MAY_HAVE_CHILDREN else set()
        assert not imported(tree) & FORBIDDEN_MODULES - allowed, path
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
