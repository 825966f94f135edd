"""The table of backends: a name, the module that runs graphs with it, and the package it needs. One row a backend."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
from contextlib import suppress
from pathlib import Path
from typing import Protocol, cast

import msgspec

from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.errors import ConfigError, MissingExtraError, UnavailableError
from edgevqa.runtime.machine import nvidia_driver
from edgevqa.runtime.manifest import Manifest, Numerics
from edgevqa.runtime.sessions.base import Session, SessionOptions
from edgevqa.runtime.targets import TARGETS, Flavour

BACKEND_VARIABLE = "EDGEVQA_BACKEND"
CUDA_LIBRARIES = "CUDA 13 (12 with Python 3.10) and cuDNN 9"
TENSORRT_LIBRARIES = "TensorRT 10 (libnvinfer.so.10)"
_GPU_BUILD = (
    "needs onnxruntime-gpu in place of onnxruntime, whose files it replaces. "
    "Install it: pip uninstall onnxruntime, then pip install 'edgevqa[gpu]'."
)


class BackendModule(Protocol):
    """What a backend's module defines."""

    def open_session(self, bundle: Bundle, variant: str, graph: str, options: SessionOptions) -> Session:
        """Load one graph of the bundle. The caller closes the session."""
        ...


class Backend(msgspec.Struct, frozen=True, kw_only=True):
    """`module` is imported when a session is opened; `package` is what it needs and `extra` installs it.

    `distributions` are the names under which the package is installed, and `likes` the INT8 and FP8 numerics that it
    runs, those that run best first. Some runs engines of a `flavour`, which a bundle must have, in place of ONNX graphs;
    its `package` may have `stand_ins` that run them too. Only builds of the package with the file `library` can run it;
    `advice` says what to install then. "auto" leaves out what is not `automatic`. `gpu` says that it runs on an NVIDIA GPU.
    """

    name: str
    module: str
    package: str
    extra: str
    distributions: tuple[str, ...]
    likes: tuple[Numerics, ...]
    flavour: Flavour | None = None
    stand_ins: tuple[str, ...] = ()
    library: str = ""
    advice: str = ""
    automatic: bool = True
    gpu: bool = False

    def installed(self) -> bool:
        """Whether `package` is here, with `library` where one is needed; nothing is imported."""
        found = [
            spec for name in (self.package, *self.stand_ins) if (spec := importlib.util.find_spec(name)) is not None
        ]
        folders = [Path(place) for spec in found for place in spec.submodule_search_locations or ()]
        return bool(found) and (not self.library or any((folder / self.library).is_file() for folder in folders))

    def missing(self) -> UnavailableError:
        """What to raise where it is not installed."""
        if self.advice:
            return UnavailableError(f"Backend '{self.name}' {self.advice}")
        return MissingExtraError(self.package, self.extra, "Running a model")

    def can_run(self, manifest: Manifest) -> bool:
        """Whether a bundle has what it runs: graphs always, engines where they were built."""
        return self.flavour is None or any(self._runs(entry.target) for entry in manifest.engines.values())

    def has_device(self) -> bool:
        """Whether what it runs on may be there: an NVIDIA driver for a GPU. Nothing is loaded."""
        return not self.gpu or nvidia_driver()

    def variants_of(self, manifest: Manifest) -> list[str]:
        """The variants that it can run: those with engines, where it needs some."""
        if self.flavour is None or not self.can_run(manifest):
            return list(manifest.variants)
        built = {entry.variant for entry in manifest.engines.values() if self._runs(entry.target)}
        return [name for name in manifest.variants if name in built]

    def _runs(self, target: str) -> bool:
        return target in TARGETS and TARGETS[target].flavour == self.flavour

    def version(self) -> str:
        """The installed version, "unknown" where the package does not say; nothing is imported."""
        for distribution in self.distributions:
            with suppress(importlib.metadata.PackageNotFoundError):
                return importlib.metadata.version(distribution)
        return "unknown"


# In the order in which "auto" tries them.
BACKENDS: dict[str, Backend] = {
    row.name: row
    for row in (
        Backend(
            name="onnxruntime",
            module="edgevqa.runtime.sessions.ort",
            package="onnxruntime",
            extra="cpu",
            distributions=("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-qnn"),
            likes=("u8-fp32", "s8-fp32", "fp8-fp16", "s8-fp16"),
        ),
        Backend(
            name="openvino",
            module="edgevqa.runtime.sessions.ov",
            package="openvino",
            extra="openvino",
            distributions=("openvino",),
            likes=("s8-fp32", "u8-fp32", "s8-fp16"),
        ),
        Backend(
            name="tensorrt",
            module="edgevqa.runtime.sessions.trt.standard",
            package="tensorrt",
            extra="tensorrt",
            distributions=("tensorrt", "tensorrt_lean", "tensorrt_dispatch"),
            likes=("s8-fp16", "fp8-fp16"),
            flavour="tensorrt",
            gpu=True,
            stand_ins=("tensorrt_lean", "tensorrt_dispatch"),
            advice=(
                "needs TensorRT, which is not installed. On a Jetson it comes with JetPack: make the environment with "
                "'python3 -m venv --system-site-packages'. Elsewhere: pip install tensorrt, in the version that built the "
                "engines. Then: pip install 'edgevqa[tensorrt]'"
            ),
        ),
        Backend(
            name="tensorrt-rtx",
            module="edgevqa.runtime.sessions.trt.rtx",
            package="tensorrt_rtx",
            extra="tensorrt-rtx",
            distributions=("tensorrt_rtx",),
            likes=("s8-fp16", "fp8-fp16"),
            flavour="tensorrt-rtx",
            gpu=True,
        ),
        Backend(
            name="ort-cuda",
            module="edgevqa.runtime.sessions.ort_cuda",
            package="onnxruntime",
            extra="gpu",
            distributions=("onnxruntime-gpu",),
            likes=("s8-fp16", "u8-fp32", "s8-fp32"),
            library="capi/libonnxruntime_providers_cuda.so",
            advice=f"{_GPU_BUILD} It runs with an NVIDIA driver, {CUDA_LIBRARIES}.",
            gpu=True,
        ),
        Backend(
            name="ort-trt",
            module="edgevqa.runtime.sessions.ort_tensorrt",
            package="onnxruntime",
            extra="gpu",
            distributions=("onnxruntime-gpu",),
            likes=("s8-fp16", "fp8-fp16", "s8-fp32"),
            library="capi/libonnxruntime_providers_tensorrt.so",
            advice=f"{_GPU_BUILD} It runs with an NVIDIA driver, {CUDA_LIBRARIES} and {TENSORRT_LIBRARIES}.",
            automatic=False,  # building its engines takes minutes
            gpu=True,
        ),
        Backend(
            name="ort-rtx",
            module="edgevqa.runtime.sessions.ort_rtx",
            package="onnxruntime_ep_nv_tensorrt_rtx",
            extra="cpu",
            distributions=(
                "onnxruntime-ep-nv-tensorrt-rtx",
                "onnxruntime-ep-nv-tensorrt-rtx-cu13",
                "onnxruntime-ep-nv-tensorrt-rtx-cu12",
            ),
            likes=("s8-fp16", "fp8-fp16", "s8-fp32"),
            advice=(
                "needs the package onnxruntime-ep-nv-tensorrt-rtx, which is not installed, with onnxruntime 1.24 or later "
                "(Python 3.11 or later) in place of onnxruntime-gpu. Install both: pip uninstall onnxruntime-gpu, then "
                "pip install 'edgevqa[cpu]' 'onnxruntime>=1.24' onnxruntime-ep-nv-tensorrt-rtx "
                "(onnxruntime-ep-nv-tensorrt-rtx-cu12 with a driver for CUDA 12)."
            ),
            automatic=False,
            gpu=True,
        ),
    )
}


def split_backend(text: str) -> tuple[str, dict[str, str]]:
    """`tensorrt,projector=onnxruntime` as the backend, and those of single graphs. Raises `ConfigError`."""
    main, *others = (part.strip() for part in text.split(","))
    pairs = [other.partition("=") for other in others]
    if not all(graph.strip() and backend.strip() in BACKENDS for graph, _, backend in pairs):
        raise ConfigError(
            f"Unknown backend '{text}'; expected a backend, and then GRAPH=BACKEND for graphs with another, such as "
            f"'tensorrt,projector=onnxruntime'. Backends are {', '.join(BACKENDS)}."
        )
    return main, {graph.strip(): backend.strip() for graph, _, backend in pairs}


def uses_gpu(text: str) -> bool:
    """Whether a backend, or another one that it names for a graph, runs on an NVIDIA GPU."""
    main, others = split_backend(text)
    return any(BACKENDS[name].gpu for name in (main, *others.values()) if name in BACKENDS)


def possible_backends(name: str = "auto") -> list[Backend]:
    """The backend called `name`, or for "auto" all automatic ones that are installed, in the table's order.

    `EDGEVQA_BACKEND` says what "auto" is, where it is set. Raises `ConfigError` for an unknown name and
    `UnavailableError` (mostly `MissingExtraError`) when it, or for "auto" every one, is not installed.
    """
    source = ""
    name, others = split_backend(name)
    for other in others.values():
        if not BACKENDS[other].installed():
            raise BACKENDS[other].missing()
    if name == "auto" and os.environ.get(BACKEND_VARIABLE):
        name, source = os.environ[BACKEND_VARIABLE], f" (from {BACKEND_VARIABLE})"
    if name != "auto" and name not in BACKENDS:
        raise ConfigError(f"Unknown backend '{name}'{source}; expected auto, {', '.join(BACKENDS)}.")
    rows = [row for row in BACKENDS.values() if row.automatic] if name == "auto" else [BACKENDS[name]]
    installed = [row for row in rows if row.installed()]
    if not installed:
        raise rows[0].missing()
    return installed


def choose_backend(name: str = "auto") -> Backend:
    """The first of `possible_backends`: what runs a graph where there is no bundle to measure with."""
    return possible_backends(name)[0]


def open_session(
    bundle: Bundle, variant: str, graph: str, *, backend: str = "auto", options: SessionOptions | None = None
) -> Session:
    """Load one graph of a bundle with a backend; the caller closes the session."""
    chosen = choose_backend(backend)
    module = cast("BackendModule", importlib.import_module(chosen.module))
    return module.open_session(bundle, variant, graph, options or SessionOptions())
