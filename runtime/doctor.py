"""What is installed for edgevqa on this machine, what is missing, and the command that adds it."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform

import msgspec

from edgevqa import __version__
from edgevqa.runtime.errors import UnavailableError
from edgevqa.runtime.machine import Machine, nvidia_driver, read_machine
from edgevqa.runtime.sessions import BACKEND_VARIABLE, BACKENDS

BASE_PACKAGES = ("msgspec", "numpy", "pillow", "platformdirs", "tokenizers", "typer")

EXTRAS: dict[str, tuple[str, ...]] = {
    "cpu": ("onnxruntime",),
    "gpu": ("onnxruntime-gpu",),
    "openvino": ("openvino",),
    "tensorrt": ("cuda-python",),
    "tensorrt-rtx": ("cuda-python", "tensorrt-rtx"),
    "export": ("onnx", "onnx-ir", "onnxscript", "optimum", "pyyaml", "safetensors", "torch", "transformers"),
    "data": ("easy-vqa",),
    "report": ("jinja2", "matplotlib"),
}
"""Each extra's packages, as pyproject.toml lists them (a test compares the two)."""

EXCLUDES = {"cpu": "onnxruntime-gpu", "gpu": "onnxruntime"}
"""The package that must go before an extra is installed, because both install the same files."""


_JETPACKS = (
    "sudo apt install tensorrt python3-libnvinfer, then make the environment with 'python3 -m venv "
    "--system-site-packages', which sees them"
)


class Backend(msgspec.Struct, frozen=True, kw_only=True):
    """One way to run graphs. `problem` is set when its package is there but cannot be used.

    TensorRT's `devices` are the machine's GPUs; without one it answers nothing, and TensorRT-RTX alone still builds.
    """

    name: str
    extra: str
    version: str | None
    devices: list[str]
    problem: str | None
    install: str | None


class Extra(msgspec.Struct, frozen=True, kw_only=True):
    """One extra of edgevqa: the packages it has, those it lacks, and the command that adds them."""

    name: str
    versions: dict[str, str]
    missing: list[str]
    install: str | None


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """All that `edgevqa doctor` says; each of `advice` is a finding with what to do."""

    edgevqa: str
    machine: Machine
    packages: dict[str, str | None]
    backends: list[Backend]
    extras: list[Extra]
    advice: list[str]


def diagnose() -> Diagnosis:
    """Look at the machine and what is installed. ONNX Runtime and OpenVINO are imported, to ask for their devices."""
    machine = read_machine()
    backends = find_backends(machine)
    return Diagnosis(
        edgevqa=__version__,
        machine=machine,
        packages={name: version_of(name) for name in BASE_PACKAGES},
        backends=backends,
        extras=[find_extra(name) for name in EXTRAS],
        advice=[*_backend_advice(machine, backends), *_jetson_advice(machine)],
    )


def version_of(package: str) -> str | None:
    """The installed version of a package, without importing it; None where it is missing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def install_command(extra: str) -> str:
    """The pip command that adds an extra; first, the one that removes what excludes it, where that is installed."""
    install = f"pip install 'edgevqa[{extra}]'"
    in_the_way = EXCLUDES.get(extra)
    if in_the_way is None or version_of(in_the_way) is None:
        return install
    return f"pip uninstall {in_the_way}, then {install}"


def find_extra(name: str) -> Extra:
    """Which packages of an extra are there."""
    found = {package: version_of(package) for package in EXTRAS[name]}
    missing = [package for package, version in found.items() if version is None]
    return Extra(
        name=name,
        versions={package: version for package, version in found.items() if version is not None},
        missing=missing,
        install=install_command(name) if missing else None,
    )


def find_backends(machine: Machine) -> list[Backend]:
    """Every backend, there or not."""
    rtx = _by_package("TensorRT-RTX", "tensorrt-rtx", "tensorrt-rtx", needs=("cuda-python",))
    return [
        _onnxruntime("gpu" if machine.gpus and not machine.jetson else "cpu"),  # for Jetson there is no onnxruntime-gpu
        _openvino(),
        _tensorrt(machine),
        rtx if rtx.version is None else msgspec.structs.replace(rtx, devices=_gpus(machine)),
    ]


def _gpus(machine: Machine) -> list[str]:
    if machine.gpus:
        return [gpu.name for gpu in machine.gpus]
    if machine.jetson is not None:
        return [machine.jetson.model]
    return ["a GPU that nvidia-smi does not show"] if nvidia_driver() else []


def _onnxruntime(extra: str) -> Backend:
    """ONNX Runtime from any of its packages; imported, because only it knows its execution providers."""
    packages = [name for name in BACKENDS["onnxruntime"].distributions if version_of(name)]
    version, devices, problem = None, list[str](), None
    if importlib.util.find_spec("onnxruntime") is not None:
        version = version_of(packages[0]) if packages else "unknown"
        try:
            devices = list(importlib.import_module("onnxruntime").get_available_providers())
        except (ImportError, OSError, AttributeError) as error:
            problem = f"it cannot be imported: {error}"
    if len(packages) > 1:
        problem = f"{' and '.join(packages)} overwrite each other's files: pip uninstall both, then install one"
    install = None if version is not None else install_command(extra)
    return Backend(name="ONNX Runtime", extra=extra, version=version, devices=devices, problem=problem, install=install)


def _openvino() -> Backend:
    """OpenVINO; imported (without its telemetry), because only it knows its devices."""
    found = _by_package("OpenVINO", "openvino", "openvino")
    if found.version is None or importlib.util.find_spec("openvino") is None:
        return found
    devices, problem = list[str](), None
    try:
        devices = importlib.import_module("edgevqa.runtime.sessions.ov").devices()
    except (UnavailableError, RuntimeError) as error:
        problem = f"it cannot be used: {error}"
    return msgspec.structs.replace(found, devices=devices, problem=problem)


def _by_package(name: str, extra: str, package: str, needs: tuple[str, ...] = ()) -> Backend:
    version = version_of(package)
    missing = [need for need in needs if version_of(need) is None]
    problem = f"{', '.join(missing)} is missing" if version is not None and missing else None
    install = install_command(extra) if version is None or missing else None
    return Backend(name=name, extra=extra, version=version, devices=[], problem=problem, install=install)


def _tensorrt(machine: Machine) -> Backend:
    """TensorRT, which comes with JetPack or from pip, and cuda-python, which the extra brings."""
    there = importlib.util.find_spec("tensorrt") is not None
    version = (version_of("tensorrt") or "unknown") if there else None
    problem, install = None, None
    if not there:
        install = f"{_JETPACKS if machine.jetson else 'pip install tensorrt'}, then {install_command('tensorrt')}"
    elif version_of("cuda-python") is None:
        problem, install = "cuda-python is missing", install_command("tensorrt")
    devices = _gpus(machine) if there else []
    return Backend(
        name="TensorRT", extra="tensorrt", version=version, devices=devices, problem=problem, install=install
    )


def _backend_advice(machine: Machine, backends: list[Backend]) -> list[str]:
    advice = [f"{backend.name}: {backend.problem}." for backend in backends if backend.problem is not None]
    usable = [
        backend
        for backend in backends
        if backend.version is not None
        and backend.problem is None
        and (backend.devices or not backend.name.startswith("TensorRT"))
    ]
    here = [row for row in BACKENDS.values() if row.installed() and row.has_device()]
    ours = [row.name for row in here if row.automatic and row.flavour is None]
    chosen = os.environ.get(BACKEND_VARIABLE)
    if chosen:
        advice.append(f"--backend auto is {chosen}, because {BACKEND_VARIABLE} says so.")
    elif len(ours) > 1:
        advice.append(f"--backend auto measures {' and '.join(ours)}, once for each bundle, and keeps the fastest.")
    for_gpu = f"{install_command('gpu')}; or {install_command('tensorrt')} with TensorRT"
    if machine.jetson:
        for_gpu = f"{_JETPACKS}, then {install_command('tensorrt')}"
    if not usable:
        install = for_gpu if machine.jetson else install_command("gpu" if machine.gpus else "cpu")
        advice.append(f"No backend can be used, so no question can be answered: {install}")
    runs_on_gpu = any(
        backend.name.startswith("TensorRT") or "CUDAExecutionProvider" in backend.devices for backend in usable
    )
    if (machine.gpus or machine.jetson) and usable and not runs_on_gpu:
        advice.append(f"There is a GPU ({_gpus(machine)[0]}), but no backend for it: {for_gpu}.")
    return advice


def _jetson_advice(machine: Machine) -> list[str]:
    jetson = machine.jetson
    if jetson is None or jetson.jetpack is None:
        return []
    if jetson.jetpack.startswith(("4", "5")) or jetson.jetpack == "6.0":
        return [
            f"JetPack {jetson.jetpack} (L4T {jetson.l4t}, Python {platform.python_version()}) has TensorRT 8; "
            "engines need TensorRT 10.3 or later: upgrade to JetPack 6.1 or later."
        ]
    return []
