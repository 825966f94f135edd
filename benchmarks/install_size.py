"""How much disk `pip install edgevqa[cpu]` takes, for each interpreter given; results are kept with the machine.

    python benchmarks/install_size.py python3.10 python3.12

Counted is every file that pip leaves in the site-packages of a fresh environment, the bytecode that it compiles
included, without pip and setuptools themselves. A megabyte is 10**6 bytes. `total_mb` adds the files' lengths and is
held against the bar; `disk_mb` adds the blocks they occupy here. Exit code 1: an install is over its bar.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "install_size.json"
BUILT_FROM = ("LICENSE", "README.md", "edgevqa", "pyproject.toml")
EXTRA = "cpu"
BAR_MB = 250.0
BAR_MB_PYTHON_3_10 = 300.0
BYTES_PER_MB = 1e6
BYTES_PER_BLOCK = 512
NOT_COUNTED = ("pip", "setuptools", "wheel", "_distutils_hack", "pkg_resources", "distutils-precedence.pth")
LARGEST_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class InstallSize:
    """One install: the interpreter, what it takes in all, what the largest packages take, and what was installed."""

    python: str
    total_mb: float
    disk_mb: float
    bytecode_mb: float
    bar_mb: float
    within_bar: bool
    largest_mb: dict[str, float]
    packages: list[str]


def machine() -> dict[str, str | int]:
    """What the figures were measured on."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count() or 0,
        "os": platform.platform(),
        "architecture": platform.machine(),
    }


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or "unknown"


def measure(interpreter: str) -> InstallSize:
    """Install the package into a fresh environment of `interpreter`, and count what is there."""
    with tempfile.TemporaryDirectory(prefix="edgevqa-size-") as scratch:
        environment = Path(scratch) / "venv"
        _run(interpreter, "-m", "venv", str(environment))
        python = str(environment / "bin" / "python")
        source = _copy_source(Path(scratch) / "source")
        _run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"{source}[{EXTRA}]")
        listed = _run(python, "-m", "pip", "list", "--disable-pip-version-check", "--format", "freeze").splitlines()
        version = _run(python, "-c", "import platform; print(platform.python_version())").strip()
        site = _run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
        packages = [line.partition(" @ ")[0] for line in listed if not line.startswith(NOT_COUNTED)]
        return _count(Path(site), version=version, packages=packages)


def _copy_source(target: Path) -> Path:
    """Copy what the package is built from, links followed: building in the checkout would pick up an old `build/`."""
    target.mkdir()
    for name in BUILT_FROM:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target / name)
    return target


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def _count(site: Path, *, version: str, packages: list[str]) -> InstallSize:
    lengths: Counter[str] = Counter()
    blocks = bytecode = 0
    for file in site.rglob("*"):
        top = file.relative_to(site).parts[0]
        if not file.is_file() or top.partition("-")[0] in NOT_COUNTED or top in NOT_COUNTED:
            continue
        status = file.stat()
        lengths[top] += status.st_size
        blocks += status.st_blocks
        bytecode += status.st_size if file.suffix == ".pyc" else 0
    bar_mb = BAR_MB_PYTHON_3_10 if version.startswith("3.10.") else BAR_MB
    total_mb, disk_mb = lengths.total() / BYTES_PER_MB, blocks * BYTES_PER_BLOCK / BYTES_PER_MB
    return InstallSize(
        python=version,
        total_mb=round(total_mb, 1),
        disk_mb=round(disk_mb, 1),
        bytecode_mb=round(bytecode / BYTES_PER_MB, 1),
        bar_mb=bar_mb,
        within_bar=total_mb <= bar_mb,
        largest_mb={name: round(size / BYTES_PER_MB, 1) for name, size in lengths.most_common(LARGEST_SHOWN)},
        packages=packages,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write the results; 1 when an install is over its bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("interpreters", nargs="*", default=[sys.executable], help="such as python3.10 python3.12")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the JSON goes")
    options = parser.parse_args(arguments)
    sizes: list[InstallSize] = []
    for interpreter in options.interpreters:
        size = measure(interpreter)
        sizes.append(size)
        verdict = "within" if size.within_bar else "OVER"
        print(f"Python {size.python}: {size.total_mb} MB ({size.disk_mb} on disk), {verdict} the {size.bar_mb} allowed")
    report = {"command": f"pip install edgevqa[{EXTRA}]", "machine": machine(), "installs": [asdict(s) for s in sizes]}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0 if all(size.within_bar for size in sizes) else 1


if __name__ == "__main__":
    sys.exit(main())
