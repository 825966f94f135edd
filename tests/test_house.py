"""What is installed: wheel and sdist hold exactly the rooms, imports stay light, the runtime lives without torch."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image, ImageDraw

import edgevqa

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "edgevqa"
ROOMS = ("calibration", "evaluation", "export", "models", "runtime")
BUILT_FROM = ("LICENSE", "MANIFEST.in", "README.md", "pyproject.toml")
CACHES = {"__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache"}
DEVELOPMENT = {"cpu", "data", "dev", "export", "openvino", "report"}
HEAVY = ("onnx", "onnx_ir", "onnxscript", "optimum", "safetensors", "torch", "transformers")
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
QUESTIONS = ("what color is the shape?", "is there a circle in the image?")

# Imports the named modules, and with "*" every module below them; tells which heavy packages came along.
IMPORT_AND_TELL = """
import importlib, json, pkgutil, sys
names, heavy = json.loads(sys.argv[1])
imported = []
for name in names:
    package = importlib.import_module(name.rstrip(".*"))
    imported.append(package.__name__)
    if name.endswith(".*"):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            importlib.import_module(module.name)
            imported.append(module.name)
print(json.dumps([imported, sorted(set(heavy) & set(sys.modules))]))
"""


@dataclass(frozen=True, kw_only=True)
class Built:
    """What `python -m build` made: an sdist, the wheel made from it, and the wheel made from the tree."""

    sdist: Path
    wheel_of_sdist: Path
    wheel: Path


def run(*command: str | Path, cwd: Path | None = None, expect: int = 0) -> str:
    """Run a command outside the checkout's environment variables; give its output, or fail with its errors."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    line = [str(part) for part in command]
    result = subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == expect, (
        f"{line}: exit {result.returncode}\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
    )
    return result.stdout if expect == 0 else result.stderr


def script(name: str) -> Path:
    """A command of the environment that the tests run in."""
    return Path(sys.executable).parent / name


def pip_install(python: Path, *what: str) -> None:
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *what)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Built from a copy, so that neither an old `build/` is picked up nor a new one left behind."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    for name in BUILT_FROM:
        shutil.copy(ROOT / name, tree / name)
    for name in ("edgevqa", "tests", *ROOMS):
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out / "both", tree)
    run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", out / "wheel", tree)
    return Built(
        sdist=next((out / "both").glob("*.tar.gz")),
        wheel_of_sdist=next((out / "both").glob("*.whl")),
        wheel=next((out / "wheel").glob("*.whl")),
    )


def files_of_the_package() -> set[str]:
    """Every file in `edgevqa/` and the rooms it links to, as the wheel should name it."""
    folders = {"edgevqa": PACKAGE} | {f"edgevqa/{room}": ROOT / room for room in ROOMS}
    return {
        f"{prefix}/{file.relative_to(folder).as_posix()}"
        for prefix, folder in folders.items()
        for file in folder.rglob("*")
        if file.is_file() and not CACHES.intersection(file.relative_to(folder).parts)
    }


def contents(wheel: Path) -> set[str]:
    """What a wheel installs, its metadata left out."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_the_wheel_holds_exactly_the_rooms(built: Built) -> None:
    installed, expected = contents(built.wheel), files_of_the_package()
    assert sorted(installed - expected) == []
    assert sorted(expected - installed) == [], "a folder without __init__.py, or data that pyproject.toml does not name"
    assert {name.partition("/")[0] for name in installed} == {"edgevqa"}, (
        "a generic top-level package would be installed"
    )
    assert all(f"edgevqa/{room}/__init__.py" in installed for room in (*ROOMS, "cli"))
    assert "edgevqa/py.typed" in installed


def test_the_sdist_gives_the_same_wheel(built: Built) -> None:
    assert contents(built.wheel_of_sdist) == contents(built.wheel)
    with tarfile.open(built.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        assert not [member.name for member in archive.getmembers() if member.issym()]
    assert {"LICENSE", "README.md", "pyproject.toml", "edgevqa/runtime/errors.py"} <= names
    assert not [name for name in names if name.startswith("tests")]


def test_the_wheel_says_what_it_is(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        metadata = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        text = archive.read(metadata).decode()
        scripts = archive.read(metadata.replace("METADATA", "entry_points.txt")).decode()
        assert metadata.replace("METADATA", "licenses/LICENSE") in archive.namelist()
    assert f"\nVersion: {edgevqa.__version__}\n" in text
    assert "\nLicense-Expression: Apache-2.0\n" in text
    assert "\nRequires-Python: >=3.10\n" in text
    assert "edgevqa = edgevqa.cli.start:main" in scripts


def test_everything_that_development_installs_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    assert [str(pin) for pin in pins if not re.fullmatch(r"==[^+*,]+", str(pin.specifier))] == []
    needed = [Requirement(line) for line in requires("edgevqa") or []]
    wanted = {
        canonicalize_name(need.name)
        for need in needed
        if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in DEVELOPMENT)
    }
    assert "torch" in wanted
    assert wanted - {canonicalize_name(pin.name) for pin in pins} == set()


@pytest.mark.parametrize("target", ["demo", "test"])
def test_the_readme_names_the_two_commands(target: str) -> None:
    assert f"\n$ make {target} " in (ROOT / "README.md").read_text(encoding="utf-8")
    assert {"demo": "/edgevqa demo", "test": "-m pytest"}[target] in run("make", "--dry-run", target, cwd=ROOT)


@pytest.mark.parametrize(
    "names",
    [
        ["edgevqa.runtime.*"],
        ["edgevqa.cli.main"],
        ["edgevqa", "edgevqa.evaluation", "edgevqa.calibration", "edgevqa.models", "edgevqa.export"],
    ],
    ids=["runtime", "command line", "rooms"],
)
def test_imports_pull_in_nothing_heavy(names: list[str], tmp_path: Path) -> None:
    told = run(sys.executable, "-c", IMPORT_AND_TELL, json.dumps([names, HEAVY]), cwd=tmp_path)
    imported, heavy = json.loads(told)
    assert {name.removesuffix(".*") for name in names} <= set(imported)
    assert heavy == []


def interpreter(version: str) -> str:
    """An interpreter of that version: the one that runs the tests, one on the path, or one of pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"
    candidates = [sys.executable, shutil.which(f"python{version}"), *pyenv.glob(f"{version}.*/bin/python")]
    asked = "import sys; print('%d.%d' % sys.version_info[:2])"
    for candidate in candidates:
        if candidate is not None:
            told = subprocess.run([candidate, "-c", asked], capture_output=True, text=True, check=False)
            if told.stdout.strip() == version:
                return str(candidate)
    pytest.skip(f"Python {version} is not on this machine")


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "circle.png"
    image = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(image).ellipse((16, 16, 48, 48), fill="blue")
    image.save(path)
    return path


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference model, exported in the environment that has torch."""
    path = tmp_path_factory.mktemp("bundle") / "reference"
    run(script("edgevqa"), "export", "reference", "--output", path)
    return path


def answers(edgevqa_script: Path, bundle: Path, picture: Path) -> list[str]:
    told = json.loads(run(edgevqa_script, "ask", bundle, picture, *QUESTIONS, "--json"))
    return [answer["answer"] for answer in told["answers"]]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("version", PYTHONS)
def test_the_runtime_lives_without_torch(
    version: str, built: Built, bundle: Path, picture: Path, tmp_path: Path
) -> None:
    """In a fresh environment with the wheel alone: refused with the pip command, then, with the backend, answered."""
    run(interpreter(version), "-m", "venv", tmp_path / "venv")
    binaries = tmp_path / "venv" / "bin"
    pip_install(binaries / "python", str(built.wheel))
    refusal = run(binaries / "edgevqa", "ask", bundle, picture, *QUESTIONS, expect=3)
    assert "pip install 'edgevqa[cpu]'" in refusal
    pip_install(binaries / "python", f"{built.wheel}[cpu]")
    absent = "import importlib.util, sys; sys.exit(any(map(importlib.util.find_spec, sys.argv[1:])))"
    run(binaries / "python", "-c", absent, *HEAVY)
    run(binaries / "python", "-c", IMPORT_AND_TELL, json.dumps([["edgevqa.runtime.*", "edgevqa.cli.main"], HEAVY]))
    run(binaries / "edgevqa", "--help")
    assert answers(binaries / "edgevqa", bundle, picture) == answers(script("edgevqa"), bundle, picture)
