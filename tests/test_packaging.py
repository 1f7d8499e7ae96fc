"""What is handed to others: the wheel, the native build, the commands of the Makefile, and no trace of a machine."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

import mcdrl_rt

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DIST_INFO = f"mcdrl_rt-{mcdrl_rt.__version__}.dist-info"


def or_skip(missing: str) -> None:
    """A tool that is not here; in CI that is a failure."""
    give_up = pytest.fail if os.environ.get("MCDRL_CI") or os.environ.get("CI") else pytest.skip
    give_up(f"needs {missing}")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of the working tree, built offline."""
    for tool in ("build", "scikit_build_core"):
        if importlib.util.find_spec(tool) is None:
            or_skip(tool)
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=120)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (path,) = folder.glob("*.whl")
    assert path.name == f"mcdrl_rt-{mcdrl_rt.__version__}-py3-none-any.whl"  # pure: one for every machine
    return zipfile.ZipFile(path)


def test_the_wheel_installs_one_name(wheel: zipfile.ZipFile) -> None:
    assert {name.partition("/")[0] for name in wheel.namelist()} == {"mcdrl_rt", DIST_INFO}
    assert "Root-Is-Purelib: true" in wheel.read(f"{DIST_INFO}/WHEEL").decode()


def test_the_wheel_holds_all_that_a_running_system_needs(wheel: zipfile.ZipFile) -> None:
    held = {name for name in wheel.namelist() if name.startswith("mcdrl_rt/")}
    here = {str(p.relative_to(ROOT)) for p in (ROOT / "mcdrl_rt").rglob("*") if p.is_file()}
    assert held == {name for name in here if "__pycache__" not in name and not Path(name).name.startswith(".")}
    assert {"mcdrl_rt/weights/mcdrl-small.safetensors", "mcdrl_rt/model/mcdrl-small.json"} <= held
    weights = ROOT / "mcdrl_rt" / "weights" / "mcdrl-small.safetensors"
    assert wheel.getinfo("mcdrl_rt/weights/mcdrl-small.safetensors").file_size == weights.stat().st_size


def test_the_wheel_says_what_it_is(wheel: zipfile.ZipFile) -> None:
    metadata = HeaderParser().parsestr(wheel.read(f"{DIST_INFO}/METADATA").decode())
    assert (metadata["Name"], metadata["Version"]) == ("mcdrl-rt", mcdrl_rt.__version__)
    assert (metadata["License-Expression"], metadata["Requires-Python"]) == ("Apache-2.0", ">=3.11")
    required = [line for line in metadata.get_all("Requires-Dist") or [] if "extra ==" not in line]
    assert len(required) == len(PROJECT["dependencies"])
    assert "mcdrl-rt=mcdrl_rt.cli:main" in wheel.read(f"{DIST_INFO}/entry_points.txt").decode().replace(" ", "")
    assert "Apache License" in wheel.read(f"{DIST_INFO}/licenses/LICENSE").decode()


def test_one_version() -> None:
    assert PROJECT["version"] == mcdrl_rt.__version__


@pytest.mark.parametrize(("part", "extras"), [("mcdrl_rt", []), ("training", ["train"])])
def test_everything_imported_is_declared(part: str, extras: list[str]) -> None:
    """Imports of the package, and of the training part, against the names of their dependencies."""
    names = {"opencv-python-headless": "cv2", "open_clip_torch": "open_clip", "scikit-learn": "sklearn"}
    lines = sum((PROJECT["optional-dependencies"][extra] for extra in extras), PROJECT["dependencies"])
    required = (re.split(r"[<>=\[ ]", line)[0] for line in lines)
    declared = {names.get(name, name.replace("-", "_")) for name in required}
    pattern = re.compile(r"^\s*(?:import|from) ([a-z]\w*)", re.MULTILINE)
    code = [re.sub(r'""".*?"""', "", path.read_text(), flags=re.DOTALL) for path in (ROOT / part).rglob("*.py")]
    imported = {name for text in code for name in pattern.findall(text)}
    foreign = imported - set(sys.stdlib_module_names) - {"mcdrl_rt", part}
    optional = {"tensorrt", "torch_tensorrt", "nncf", "onnxruntime", "pygame", "pycocotools", "ray"}
    assert foreign - optional <= declared


@pytest.mark.parametrize("compiler", ["without", "with"])
def test_cmake_configures_anywhere(compiler: str, tmp_path: Path) -> None:
    """No CUDA compiler is no error: nothing is built then, and the Python package works."""
    cmake = shutil.which("cmake")
    if cmake is None or shutil.which("c++") is None:
        pytest.skip("needs cmake and a C++ compiler; the Python package does not")
    environment = dict(os.environ)
    if compiler == "without":
        folders = os.environ["PATH"].split(os.pathsep)
        without = [folder for folder in folders if not (Path(folder) / "nvcc").exists()]
        environment |= {"CUDACXX": "/nonexistent", "PATH": os.pathsep.join(without)}
    elif shutil.which("nvcc") is None:
        pytest.skip("needs nvcc")
    command = [cmake, "-S", str(ROOT), "-B", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    left_out = "mcdrl-rt: no CUDA compiler; the native library is left out"
    assert (left_out in ended.stdout) == (compiler == "without")


@pytest.mark.parametrize("target", ["demo", "test", "test-slow", "lint", "bench", "picture", "clean"])
def test_make_knows(target: str) -> None:
    if shutil.which("make") is None:
        or_skip("make")
    ended = subprocess.run(["make", "--dry-run", target], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert ended.returncode == 0, ended.stderr


def test_nothing_names_the_machine_it_was_made_on() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True
    )
    if listed.returncode:
        pytest.skip("needs a git checkout")
    traces = [str(ROOT).encode(), str(Path.home()).encode() + b"/", sys.prefix.encode()]
    homes = re.compile(rb"/(?:home|Users|root)/\w")
    files = [ROOT / os.fsdecode(name) for name in listed.stdout.split(b"\0") if name]
    named = [path.name for path in files if path.is_file() and any(trace in path.read_bytes() for trace in traces)]
    in_home = [path.name for path in files if path.is_file() and homes.search(path.read_bytes())]
    assert (named, in_home) == ([], [])
