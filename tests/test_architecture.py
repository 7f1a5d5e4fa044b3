"""What the house rules say of imports, files and public names."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import egnn_jax as egnn

PACKAGE = Path(egnn.__file__).parent
ALLOWED = {
    "graph": {"graph", "_extras"},
    "nn": {"graph", "nn"},
    "models": {"graph", "nn", "models"},
    "potentials": {"graph", "nn", "models", "potentials", "_extras"},
    "data": {"graph", "data", "_files", "_extras", "_launch", "_progress"},
    "training": {"graph", "data", "training", "_files", "_extras", "_launch", "_progress"},
    "losses": {"graph", "training"},
    "testing": {"graph", "testing"},
    "interop": {"graph", "nn", "models", "interop"},
    "registry": set(),
    "_extras": {"_files"},
    "_files": set(),
    "_launch": set(),
    "_progress": {"_extras"},
}
"""The parts of the library that each part may import."""


def imported(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}
    names |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    froms = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module == "egnn_jax"]
    names |= {f"egnn_jax.{a.name}" for n in froms for a in n.names}
    return {name for name in names if name.startswith("egnn_jax.")}


@pytest.mark.parametrize("part", ALLOWED)
def test_imports_point_one_way(part):
    place = PACKAGE / part
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    for file in files:
        parts = {name.split(".")[1] for name in imported(file)}
        assert parts <= ALLOWED[part], f"{file} imports {parts - ALLOWED[part]}"


@pytest.mark.parametrize(
    ("text", "users"),
    [
        ("import jraph", ["graph/graph.py"]),
        ("from tqdm", ["_progress.py"]),
        # For the version, and networks by the name of a file.
        (
            "import egnn_jax\n",
            ["potentials/calculator.py", "potentials/ensemble.py", "training/fit.py"],
        ),
    ],
)
def test_only_these_files_use(text, users):
    found = [p for p in PACKAGE.rglob("*.py") if text in p.read_text(encoding="utf-8")]
    assert sorted(found) == [PACKAGE / user for user in users]


@pytest.mark.parametrize(
    "folder", [PACKAGE, PACKAGE.parent / "scripts"], ids=["egnn_jax", "scripts"]
)
def test_files_are_short(folder):
    files = folder.rglob("*.py")
    sizes = {str(p): len(p.read_text(encoding="utf-8").splitlines()) for p in files}
    assert {name: size for name, size in sizes.items() if size > 300} == {}


@pytest.mark.parametrize("command", ["import egnn_jax", "import egnn_jax.cli"])
def test_importing_the_library_does_not_import_jax(command):
    """So that ``egnn --help`` is there at once."""
    code = f"{command}; import sys; assert not {{'jax', 'flax', 'numpy'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_models_without_steerable_features_do_not_import_e3nn():
    code = (
        "import sys, egnn_jax as egnn; egnn.EGNN, egnn.SchNet, egnn.fit, egnn.complete_graph;"
        "assert 'e3nn_jax' not in sys.modules; egnn.TFN; assert 'e3nn_jax' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def without_encoding(path):
    """The lines where a text file is read or written in the encoding of the machine."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute | ast.Name):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
        texts = [a.value for a in node.args if isinstance(a, ast.Constant)]
        opens = name == "open" and not any("b" in str(text) for text in texts)
        opens &= isinstance(node.func, ast.Name) or bool(texts)  # not tarfile.open(path)
        named = any(keyword.arg == "encoding" for keyword in node.keywords)
        if (opens or name in ("read_text", "write_text")) and not named:
            found.append(node.lineno)
    return found


def test_every_text_file_has_its_encoding_named(tmp_path):
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "open('a')\np.open('w')\np.read_text()\np.write_text('')\np.open('rb')\n", encoding="utf-8"
    )
    assert without_encoding(wrong) == [1, 2, 3, 4]
    root = PACKAGE.parent
    files = [*PACKAGE.rglob("*.py"), *(root / "scripts").rglob("*.py")]
    assert {str(file): lines for file in files if (lines := without_encoding(file))} == {}
