"""Sessions of ONNX Runtime on a GPU: never on the CPU by silence, and outputs stay on the device."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import importlib.util
import io
import sys
import warnings
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgevqa.runtime.axes import own_axes
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.caches import HostKeyValueCache, KeyValueCache, cache_shape
from edgevqa.runtime.errors import BundleError, ConfigError, UnavailableError, require
from edgevqa.runtime.hashing import sha256_bytes
from edgevqa.runtime.manifest import GraphSpec
from edgevqa.runtime.paths import cache_dir
from edgevqa.runtime.sessions import BACKENDS
from edgevqa.runtime.sessions.base import Array, SessionOptions, Tensor
from edgevqa.runtime.sessions.compiled_cache import CompiledCache
from edgevqa.runtime.sessions.ort import OrtSession, first_line
from edgevqa.runtime.sessions.ort_device_cache import CudaCopy, DeviceKeyValueCache
from edgevqa.runtime.sessions.ort_providers import DRIVER, Provider, axis_ranges, make_options
from edgevqa.runtime.sessions.ort_values import OrtTensor, Place, described, run_bound, within_reach

_SHARED = "libonnxruntime_providers_shared.so"
_TENSORRT = ("libnvinfer.so.10", "libnvinfer_plugin.so.10", "libnvonnxparser.so.10")
_WARNING, _SILENT = 2, 4  # ONNX Runtime's severities; the first is its default


class GpuOrtSession(OrtSession):
    """One graph on one execution provider. What the provider leaves runs on the CUDA provider, then on the CPU."""

    def __init__(
        self,
        path: Path,
        name: str,
        spec: GraphSpec,
        options: SessionOptions,
        *,
        provider: Provider,
        made: dict[str, str],
    ) -> None:
        """`made` are the provider's options. Raises `UnavailableError` where it cannot be used here."""
        self.provider = provider
        self.provider_options = made
        self.device_id = _device_id(made)
        super().__init__(path, name, spec, options)
        self.place = Place("cuda", self.device_id) if _copies_to_gpu(self._ort) else Place("cpu", 0)

    def run(self, inputs: Mapping[str, Tensor | Array]) -> dict[str, Tensor]:
        """As `OrtSession.run`; outputs stay on the device."""
        values = {name: within_reach(value, self.place) for name, value in inputs.items()}
        session = self._checked({name: described(value) for name, value in values.items()})
        try:
            return run_bound(self._ort, session, values, self.outputs, self.place)
        except Exception as error:  # the binding's exceptions share no base but Exception
            raise self._failed(error) from error

    def make_cache(self, batch: int, capacity: int) -> KeyValueCache:
        """The decoder's past, on the GPU where CUDA can be asked to copy there; else on the host."""
        copy = CudaCopy.find(self._ort) if self.place == Place("cuda", 0) else None
        if copy is None:
            return HostKeyValueCache(self.inputs, batch, capacity)
        past = {
            spec.name: self._zeros(cache_shape(spec, batch, capacity), spec.dtype)
            for spec in self.inputs
            if spec.name.startswith(("past_key.", "past_value."))
        }
        return DeviceKeyValueCache(past, capacity, copy, self._zeros)

    def _zeros(self, shape: tuple[int, ...], dtype: str) -> OrtTensor:
        zeros = np.zeros(shape, dtype=np.dtype(dtype))
        return OrtTensor(self._ort.OrtValue.ortvalue_from_numpy(zeros, self.place.device, self.place.number))

    def _load(self, path: Path, options: SessionOptions) -> Any:
        settings = self._settings(options)
        with _quiet(self._ort):
            choice = self._choose(settings)
            try:
                # With ONNX Runtime's own fallback it would print, and go on without the provider.
                session = self._ort.InferenceSession(str(path), settings, **choice, enable_fallback=False)
            except Exception as error:  # the binding's exceptions share no base but Exception
                missing = missing_library(self.provider)
                if missing:
                    raise unavailable(self.provider, missing) from error
                raise BundleError(
                    f"ONNX Runtime {self._ort.__version__} cannot load {path} with {self.provider.name}: "
                    f"{first_line(error)} Choose another backend, or other provider options."
                ) from error
        if self.provider.name not in session.get_providers():
            raise unavailable(self.provider, missing_library(self.provider))
        return session

    def _choose(self, settings: Any) -> dict[str, Any]:
        """The arguments by which a session is made with the provider."""
        if self.provider.plugin:
            devices = _plugin_devices(self._ort, self.provider)
            if self.device_id >= len(devices):
                raise ConfigError(
                    f"device_id is {self.device_id}; expected less than {len(devices)}, the GPUs there are."
                )
            rest = {name: value for name, value in self.provider_options.items() if name != "device_id"}
            settings.add_provider_for_devices([devices[self.device_id]], rest)
            return {}
        preload()
        if not _offers(self._ort, self.provider.name):
            raise unavailable(self.provider, f"the installed onnxruntime {self._ort.__version__} was built without it")
        behind = [(name, {"device_id": str(self.device_id)}) for name in self.provider.behind]
        return {"providers": [(self.provider.name, self.provider_options), *behind]}


def open_gpu_session(
    bundle: Bundle, variant: str, graph: str, options: SessionOptions, provider: Provider
) -> GpuOrtSession:
    """Load one graph of the bundle; what the provider compiles is kept in the user's cache. The caller closes it."""
    if options.profile:
        raise ConfigError(f"Backend '{provider.backend}' does not time layers; onnxruntime and openvino do.")
    spec, numerics = bundle.graph(variant, graph), bundle.variant(variant).numerics
    ranges = own_axes(spec, axis_ranges(bundle.manifest, bundle.variant(variant).graphs))
    make = functools.partial(
        make_options, provider, spec, numerics=numerics, ranges=ranges, given=dict(options.provider_options)
    )
    with _cache_of(bundle, variant, graph, provider, make(cache=None)) as folder:
        path = bundle.graph_path(variant, graph)
        return GpuOrtSession(path, graph, spec, options, provider=provider, made=make(cache=folder))


def unavailable(provider: Provider, missing: str) -> UnavailableError:
    """The error that names what a provider lacks here."""
    why = f": {missing}" if missing else ", for a reason that it does not tell"
    return UnavailableError(
        f"Backend '{provider.backend}' cannot be used here{why}. It needs {provider.needs}. "
        "Install what is missing ('edgevqa doctor' shows what is there), or choose another backend."
    )


def missing_library(provider: Provider) -> str:
    """What the dynamic loader says that a provider lacks, the driver first; "" where it finds all."""
    try:
        ctypes.CDLL(DRIVER)
    except OSError:
        return f"no NVIDIA driver was found ({DRIVER})"
    spec = importlib.util.find_spec("onnxruntime")
    if not provider.library or spec is None or spec.origin is None:
        return ""
    folder = Path(spec.origin).parent / "capi"
    preload()
    try:
        ctypes.CDLL(str(folder / _SHARED), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(folder / provider.library))
    except OSError as error:
        return str(error)
    return ""


@functools.cache
def preload() -> None:
    """Load CUDA, cuDNN and TensorRT 10 from pip's packages, where they are; ONNX Runtime does not look there."""
    ort: Any = require("onnxruntime", extra="gpu", purpose="Running a model on a GPU")
    if hasattr(ort, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():  # it tells what it does not find
            warnings.simplefilter("ignore")
            for folder in ("", *map(str, _nvidia_folders(Path(ort.__file__).parent.parent))):
                ort.preload_dlls(directory=folder)
    spec = importlib.util.find_spec("tensorrt_libs")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        for name in _TENSORRT:
            with contextlib.suppress(OSError):
                ctypes.CDLL(str(Path(folder) / name), mode=ctypes.RTLD_GLOBAL)


def _nvidia_folders(own: Path) -> list[Path]:
    """Where pip put NVIDIA's libraries, other than beside ONNX Runtime (at `own`), where it looks by itself.

    A virtual environment may take them, with PyTorch, from another one or from the system.
    """
    found: dict[str, Path] = {}
    for place in (own, *map(Path, sys.path)):
        for folder in sorted(place.glob("nvidia/*/lib")):
            found.setdefault(folder.parent.name, folder)  # two copies of one library must not be loaded
    return [folder for folder in found.values() if own not in folder.parents]


@contextlib.contextmanager
def _cache_of(
    bundle: Bundle, variant: str, graph: str, provider: Provider, made: Mapping[str, str]
) -> Generator[Path | None, None, None]:
    """The folder for what the provider compiles, named by graphs, versions and options; None where there is none."""
    about = f"{provider.name} {_version(provider)} {sorted(made.items())}"
    if provider.prefix == "trt":  # engines are loaded as they are: they are hashed
        with CompiledCache.of(bundle, variant, graph, made_by=about).opened() as folder:
            yield folder
        return
    if provider.prefix != "nv":
        yield None
        return
    # This one writes when a session ends, and checks what it reads itself.
    key = sha256_bytes(f"{bundle.fingerprint(variant)} {about}".encode())[:32]
    folder = cache_dir() / provider.backend / key / graph
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        yield None
        return
    yield folder


def _version(provider: Provider) -> str:
    extra = BACKENDS[provider.backend].extra
    ort: Any = require("onnxruntime", extra=extra, purpose="Running a model on a GPU")
    plugin = sys.modules.get(provider.plugin) if provider.plugin else None
    return f"{ort.__version__} {getattr(plugin, '__version__', '')}".strip()


@contextlib.contextmanager
def _quiet(ort: Any) -> Generator[None, None, None]:
    """ONNX Runtime tells on stderr what it cannot load; our errors tell it."""
    ort.set_default_logger_severity(_SILENT)
    try:
        yield
    finally:
        ort.set_default_logger_severity(_WARNING)


def _plugin_devices(ort: Any, provider: Provider) -> list[Any]:
    """The GPUs that a plugin can use. Raises `UnavailableError` where there are none."""
    if not hasattr(ort, "register_execution_provider_library"):
        raise unavailable(provider, f"onnxruntime {ort.__version__} takes no such plugin, 1.24 and later do")
    try:
        _register(provider.name, provider.plugin)
    except Exception as error:  # the binding's exceptions share no base but Exception
        raise unavailable(provider, missing_library(provider) or first_line(error)) from error
    devices = [device for device in ort.get_ep_devices() if device.ep_name == provider.name]
    if not devices:
        raise unavailable(provider, "it finds no GPU that it can use")
    return devices


@functools.cache
def _register(name: str, package: str) -> None:
    """Tell ONNX Runtime of a plugin, once a process."""
    ort: Any = importlib.import_module("onnxruntime")
    plugin: Any = importlib.import_module(package)
    ort.register_execution_provider_library(name, plugin.get_library_path())


def _device_id(made: Mapping[str, str]) -> int:
    text = made.get("device_id", "0")
    if not text.isdecimal():
        raise ConfigError(f"Option device_id is {text!r}; expected the number of a GPU.")
    return int(text)


def _copies_to_gpu(ort: Any) -> bool:
    """Whether this build can copy between host and GPU; without that, outputs are taken on the host."""
    return _offers(ort, "CUDAExecutionProvider")


def _offers(ort: Any, name: str) -> bool:
    """Whether a provider is part of this build, or one of the plugins that it loads by itself."""
    plugins: Any = getattr(ort, "get_ep_devices", list)
    return name in ort.get_available_providers() or any(device.ep_name == name for device in plugins())
