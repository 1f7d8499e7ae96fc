"""Architecture: imports point one way, the package is light, and what is public is documented."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "mcdrl_rt"
FILES = sorted(PACKAGE.rglob("*.py"))

# A part may import itself and parts of a lower layer; parts of one layer do not know each other.
LAYERS = (
    {"types", "errors", "version", "unfinished", "folders"},
    {"ops", "video"},
    {"model", "log"},
    {"engine"},
    {"segmenter"},
    {"stream"},
    {"offline"},
    {"doctor", "console"},
    {"progress"},
    {"commands"},
    {"cli"},
)
# Dice is measured as training does it, and beside time: the one benchmark that has to look there.
ACROSS = {("accuracy_speed", "training")}
# One edge inside a layer, and none but this: a specification that contradicts itself is an error of ours.
WITHIN = {("types", "errors")}


def part(module: str) -> str:
    """``mcdrl_rt.engine.onnx`` → ``engine``; the package itself is ``__init__``."""
    names = module.split(".")
    return names[1] if len(names) > 1 else "__init__"


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[str]:
    """Every module a file imports, at any depth of its code, relative ones as ``.``."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield "."
            elif node.module == "mcdrl_rt":  # a submodule, or a name of the package
                submodules = {p.stem for p in PACKAGE.iterdir()}
                yield from (f"mcdrl_rt.{n.name}" if n.name in submodules else "mcdrl_rt" for n in node.names)
            else:
                yield node.module or ""


def level(name: str) -> int:
    return next(i for i, layer in enumerate(LAYERS) if name in layer)


def test_every_part_has_its_place() -> None:
    parts = {part(module_of(path)) for path in FILES} - {"__init__", "__main__"}
    assert parts <= set().union(*LAYERS), "a new part needs a place in LAYERS"
    assert {"types", "errors", "ops", "video", "model", "engine", "segmenter", "stream", "cli"} <= parts


@pytest.mark.parametrize("path", FILES, ids=lambda path: module_of(path))
def test_imports_point_from_the_command_line_to_the_types(path: Path) -> None:
    here = part(module_of(path))
    for module in imports(path):
        if not module.startswith("mcdrl_rt"):
            continue
        there = part(module)
        if "__init__" in (here, there) or here == "__main__":
            # the package's own top gives public names; the library imports nothing through it
            assert here in ("__init__", "__main__"), module
            continue
        assert here == there or level(there) < level(here) or (here, there) in WITHIN, f"{here} imports {module}"


def test_nothing_imports_by_relative_path() -> None:
    folders = ("mcdrl_rt", "training", "benchmarks", "tests")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 40
    assert [str(path) for path in files if "." in imports(path)] == []


@pytest.mark.parametrize(
    ("folder", "strangers"),
    [
        ("mcdrl_rt", {"training", "benchmarks", "engines", "tests"}),
        ("training", {"benchmarks", "engines", "tests"}),
        ("benchmarks", {"training", "engines", "tests"}),
    ],
)
def test_deployment_training_and_benchmarks_stay_apart(folder: str, strangers: set[str]) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    for path in files:
        found = strangers & {module.split(".")[0] for module in imports(path)}
        assert not {name for name in found if (path.stem, name) not in ACROSS}, path


def test_importing_the_package_imports_nothing_heavy() -> None:
    script = "import sys, mcdrl_rt; print(*sys.modules)"
    loaded = set(subprocess.check_output([sys.executable, "-c", script], cwd=ROOT, text=True).split())
    heavy = {"torch", "torchvision", "open_clip", "timm", "openvino", "onnx", "onnxscript", "onnxruntime", "cv2", "av"}
    heavy |= {"pyarrow", "pycocotools", "jinja2"}
    assert not heavy & loaded
    assert {module for module in loaded if module.startswith("mcdrl_rt")} == {"mcdrl_rt", "mcdrl_rt.version"}


def test_public_names_are_there_and_others_are_not() -> None:
    import mcdrl_rt

    assert all(getattr(mcdrl_rt, name) is not None for name in mcdrl_rt.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = mcdrl_rt.Nonsense


def public(node: ast.Module | ast.ClassDef, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Public functions and classes of a module, and public methods of those classes."""
    for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and child.name[0] != "_":
            yield prefix + child.name, child
            if isinstance(child, ast.ClassDef):
                yield from public(child, f"{child.name}.")


@pytest.mark.parametrize("path", FILES, ids=lambda path: module_of(path))
def test_what_is_public_is_documented(path: Path) -> None:
    tree = ast.parse(path.read_text())
    names = [name for name, node in public(tree) if not ast.get_docstring(node)]  # type: ignore[arg-type]
    assert [name for name in names if not name.endswith(".forward")] == []  # torch's protocol: the class says it
    assert ast.get_docstring(tree) or not tree.body, "a module says what it is"


@pytest.mark.parametrize("path", FILES, ids=lambda path: module_of(path))
def test_files_stay_short_enough_to_read(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400
