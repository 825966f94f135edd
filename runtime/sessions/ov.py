"""The OpenVINO backend, on the CPU unless told otherwise: host arrays are read in place, outputs flow on uncopied."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.errors import BundleError, ConfigError, EdgeVQAError, UnavailableError, require
from edgevqa.runtime.manifest import GraphSpec, TensorSpec
from edgevqa.runtime.sessions.base import Array, SessionOptions, Tensor
from edgevqa.runtime.sessions.checks import check_inputs
from edgevqa.runtime.sessions.compiled_cache import CompiledCache

DEVICE = "DEVICE"
_REPORTS_HOME = "openvino_telemetry"
_DTYPES = {
    "f32": "float32",
    "f64": "float64",
    "f16": "float16",
    "bf16": "bfloat16",
    "boolean": "bool",
    **{f"{sign}{bits}": f"{name}{bits}" for sign, name in (("i", "int"), ("u", "uint")) for bits in (8, 16, 32, 64)},
}
_EXACT = {
    "INFERENCE_PRECISION_HINT": "f32",  # a CPU with bfloat16 would compute in it, unasked
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",  # nor are activations quantised behind our back
    "PERFORMANCE_HINT": "LATENCY",
    "NUM_STREAMS": "1",
}
# A pinned thread waits for its core when another process has it (here: up to 20 times slower).
_ON_CPU = {"ENABLE_CPU_PINNING": "NO"}
_NO_PLUGIN = ("AUTO", "HETERO", "MULTI", "BATCH")  # names that combine devices


class OvTensor:
    """A value in host memory that OpenVINO allocated and this object owns; it outlives session and request."""

    def __init__(self, value: Any, dtype: str) -> None:
        self.value = value
        self.dtype = dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    def numpy(self) -> Array:
        """A host copy, owned by the caller."""
        return np.array(self.value.data)


class OvSession:
    """One graph in OpenVINO. `run` may be called from several threads; `close` may not be called during a run."""

    def __init__(
        self, path: Path, name: str, spec: GraphSpec, options: SessionOptions, cache: CompiledCache | None = None
    ) -> None:
        self._ov = load_openvino()
        self.name = name
        self.inputs: list[TensorSpec] = spec.inputs
        self.outputs: list[TensorSpec] = spec.outputs
        self._lock = threading.Lock()
        self._idle: list[Any] = []
        self.compiled: Any = self._load(path, options, cache)
        self._check_signature(path)
        self._places = {name: place for name, (place, _) in _ports(self.compiled.inputs).items()}
        self._makers = [self._maker(spec) for spec in self.outputs]

    def run(self, inputs: Mapping[str, Tensor | Array]) -> dict[str, Tensor]:
        """Run the graph. Arrays are read in place during the call (copied first where not contiguous or read-only).

        Raises `InputError` naming the graph and what it expects for wrong names, dtypes or shapes. Outputs belong to
        the caller and stay valid after the next `run` and after `close`.
        """
        if self.compiled is None:
            raise EdgeVQAError(f"Graph '{self.name}' was closed; load the pipeline again.")
        values = {name: _native(value) for name, value in inputs.items()}
        check_inputs(self.name, self.inputs, {name: (_dtype(value), value.shape) for name, value in values.items()})
        request = self._take()
        found: dict[str, Tensor] = {}
        try:
            for name, value in values.items():
                request.set_input_tensor(self._places[name], self._ov_tensor(value))
            for spec, (place, kind, shape) in zip(self.outputs, self._makers, strict=True):
                tensor = self._ov.Tensor(kind, shape)  # a new one each time: it becomes the caller's
                request.set_output_tensor(place, tensor)
                found[spec.name] = OvTensor(tensor, spec.dtype)
            self._infer(request)
        except RuntimeError as error:
            raise EdgeVQAError(f"Graph '{self.name}' failed in OpenVINO: {message_of(error)}") from error
        self._give_back(request)
        return found

    def close(self) -> None:
        """Free the compiled graph; closing twice is harmless."""
        with self._lock:
            self._idle.clear()
            self.compiled = None

    def __enter__(self) -> OvSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _infer(self, request: Any) -> None:
        request.infer(share_outputs=True)  # shared: the binding would copy every output once more

    def _take(self) -> Any:
        """A request of its own for each run at a time; a failed one is not given back."""
        with self._lock:
            return self._idle.pop() if self._idle else self.compiled.create_infer_request()

    def _give_back(self, request: Any) -> None:
        with self._lock:
            if self.compiled is not None:
                self._idle.append(request)

    def _maker(self, spec: TensorSpec) -> tuple[int, Any, Any]:
        """Place, element type and shape of a new output; where the shape is dynamic the run enlarges an empty one."""
        place, port = _ports(self.compiled.outputs)[spec.name]
        shape = port.get_partial_shape()
        return place, port.get_element_type(), shape.to_shape() if shape.is_static else [0]

    def _ov_tensor(self, value: OvTensor | Array) -> Any:
        return value.value if isinstance(value, OvTensor) else self._ov.Tensor(value, shared_memory=True)

    def _load(self, path: Path, options: SessionOptions, cache: CompiledCache | None) -> Any:
        device, settings = compile_settings(options)
        if cache is not None and "CACHE_DIR" not in settings:
            with cache.opened() as folder:
                if folder is not None:
                    with suppress(RuntimeError):  # the disk may be full; without the cache, below, the cause is told
                        return core().compile_model(str(path), device, {**settings, "CACHE_DIR": str(folder)})
        try:
            return core().compile_model(str(path), device, settings)
        except RuntimeError as error:
            raise BundleError(
                f"OpenVINO {version()} cannot load {path} for the device {device}: {message_of(error)} "
                "Upgrade openvino, choose another backend, or export the bundle again."
            ) from error

    def _check_signature(self, path: Path) -> None:
        """The file must have the manifest's inputs and outputs."""
        sides = (("inputs", self.inputs, self.compiled.inputs), ("outputs", self.outputs, self.compiled.outputs))
        for kind, specs, ports in sides:
            found = {name: dtype_name(port.get_element_type()) for name, (_, port) in _ports(ports).items()}
            want = {spec.name: spec.dtype for spec in specs}
            # OpenVINO drops a cast at the end that changes nothing to it; the port then has both its names.
            aliases = {name for port in ports if set(want) & port.get_names() for name in port.get_names()} - set(want)
            have = {name: dtype for name, dtype in found.items() if name not in aliases}
            if have != want:
                wrong = ", ".join(sorted({name for name, _ in have.items() ^ want.items()}))
                raise BundleError(f"{path} has other {kind} than the manifest says: {wrong}. Export the bundle again.")


def open_session(bundle: Bundle, variant: str, graph: str, options: SessionOptions) -> OvSession:
    """Load one graph of the bundle; compiled once, it is loaded from the user's cache. The caller closes the session."""
    path = bundle.graph_path(variant, graph)
    load_openvino()
    cache = CompiledCache.of(bundle, variant, graph, made_by=f"{version()} {device_name(options)}")
    if options.profile:
        from edgevqa.runtime.sessions.ov_profile import ProfiledOvSession

        return ProfiledOvSession(path, graph, bundle.graph(variant, graph), options)
    return OvSession(path, graph, bundle.graph(variant, graph), options, cache)


@functools.cache
def load_openvino() -> Any:
    """Import openvino, without the package by which it would report its import over the network.

    Raises `MissingExtraError`, or `UnavailableError` where it is installed but cannot be loaded.
    """
    try:
        with _hidden(_REPORTS_HOME):
            return require("openvino", extra="openvino", purpose="Running a model with OpenVINO")
    except (ImportError, OSError) as error:
        raise UnavailableError(
            f"OpenVINO is installed but cannot be loaded: {error}. Install it again: pip install --force-reinstall openvino"
        ) from error


@functools.cache
def core() -> Any:
    """The process's one entry to OpenVINO; it loads a device's library when that device is first used."""
    return load_openvino().Core()


def version() -> str:
    """OpenVINO's version with its build."""
    return str(load_openvino().get_version())


def devices() -> list[str]:
    """The devices of this machine that OpenVINO can use, such as `CPU (AMD EPYC)`."""
    names: list[str] = core().available_devices
    return [f"{name} ({core().get_property(name, 'FULL_DEVICE_NAME')})" for name in names]


def device_name(options: SessionOptions) -> str:
    """The device that the options choose, what it is and what it can, such as `CPU AMD EPYC BF16 FP32 INT8`."""
    device, _ = compile_settings(options)
    if device.partition(":")[0] in _NO_PLUGIN:
        return device
    can = " ".join(core().get_property(device, "OPTIMIZATION_CAPABILITIES"))
    return f"{device} {core().get_property(device, 'FULL_DEVICE_NAME')} {can}"


def compile_settings(options: SessionOptions) -> tuple[str, dict[str, str]]:
    """The device, and the properties that a graph is compiled with; those of the user win.

    Raises `UnavailableError` for a device that is not here, and `ConfigError` for a property that it does not have.
    """
    given = dict(options.provider_options)
    device = given.pop(DEVICE, "CPU")
    kind = device.partition(":")[0].partition(".")[0]
    available: list[str] = core().available_devices
    if kind not in _NO_PLUGIN and kind not in {name.partition(".")[0] for name in available}:
        raise UnavailableError(
            f"OpenVINO has no device '{device}' on this machine; it has {', '.join(available)}. Choose one of these."
        )
    if given and kind not in _NO_PLUGIN:
        known = {*core().get_property(device, "SUPPORTED_PROPERTIES"), "CACHE_DIR", "CACHE_MODE"}
        unknown = sorted(set(given) - known)
        if unknown:
            raise ConfigError(
                f"OpenVINO's device {device} has no property {', '.join(unknown)}; expected {', '.join(sorted(known))}."
            )
    threads = {"INFERENCE_NUM_THREADS": str(options.threads)} if options.threads else {}
    return device, {**_EXACT, **({**_ON_CPU, **threads} if kind == "CPU" else {}), **given}


def dtype_name(element_type: Any) -> str:
    """OpenVINO's element type as numpy calls it."""
    name: str = element_type.get_type_name()
    return _DTYPES.get(name, name)


def message_of(error: Exception) -> str:
    """What an error of OpenVINO says, without the places in its source, on one line."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith(("Exception from ", "Check '"))]
    return " ".join(told or [line for line in lines if line][:1])


@contextmanager
def _hidden(module: str) -> Generator[None, None, None]:
    """Let imports of `module` fail for a while; what was imported before comes back."""
    before = sys.modules.get(module)
    sys.modules[module] = None  # type: ignore[assignment]  # the documented way to make an import fail
    try:
        yield
    finally:
        del sys.modules[module]
        if before is not None:
            sys.modules[module] = before


def _ports(ports: list[Any]) -> dict[str, tuple[int, Any]]:
    """Index and port of every input or output, by each of its names."""
    return {name: (index, port) for index, port in enumerate(ports) for name in port.get_names()}


def _native(value: Tensor | Array) -> OvTensor | Array:
    """Our own tensors as they are; everything else as a contiguous, writeable host array in the machine's byte order."""
    if isinstance(value, OvTensor):
        return value
    array = value if isinstance(value, np.ndarray) else value.numpy()
    array = np.asarray(array, dtype=np.dtype(array.dtype.str.replace(">", "=")), order="C")
    return array if array.flags.writeable else array.copy()  # OpenVINO shares no memory that it may not write


def _dtype(value: OvTensor | Array) -> str:
    return value.dtype if isinstance(value, OvTensor) else str(value.dtype)
