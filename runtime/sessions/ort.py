"""The ONNX Runtime backend: host arrays are bound where they lie, outputs flow on as OrtValues. On the CPU by itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.errors import BundleError, EdgeVQAError, require
from edgevqa.runtime.manifest import GraphSpec, TensorSpec
from edgevqa.runtime.sessions.base import Array, SessionOptions, Tensor
from edgevqa.runtime.sessions.checks import check_inputs

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
    "tensor(bool)": "bool",
    **{f"tensor({sign}int{bits})": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


class OrtTensor:
    """A value in ONNX Runtime's memory."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.shape: tuple[int, ...] = tuple(value.shape())
        self.dtype = str(_DTYPES.get(value.data_type(), value.data_type()))
        self.device = str(value.device_name())

    def numpy(self) -> Array:
        """A host copy, owned by the caller."""
        # OrtValue.numpy() may be a view that dies with the OrtValue: reading it later crashes (onnxruntime 1.31).
        return np.array(self.value.numpy())


class OrtSession:
    """One graph in ONNX Runtime. `run` may be called from several threads; `close` may not be called during a run."""

    device = "cpu"
    device_id = 0

    def __init__(self, path: Path, name: str, spec: GraphSpec, options: SessionOptions) -> None:
        self._ort: Any = require("onnxruntime", extra="cpu", purpose="Running a model with ONNX Runtime")
        self.name = name
        self.inputs: list[TensorSpec] = spec.inputs
        self.outputs: list[TensorSpec] = spec.outputs
        self._session: Any = self._load(path, options)
        self._check_signature(path)

    def run(self, inputs: Mapping[str, Tensor | Array]) -> dict[str, Tensor]:
        """Run the graph. Arrays are read in place during the call (copied first where not contiguous).

        Raises `InputError` naming the graph and what it expects for wrong names, dtypes or shapes. Outputs belong to
        the caller and stay valid after the next `run` and after `close`.
        """
        if self._session is None:
            raise EdgeVQAError(f"Graph '{self.name}' was closed; load the pipeline again.")
        values = {name: _native(value, self.device) for name, value in inputs.items()}
        check_inputs(self.name, self.inputs, {name: (_dtype(value), value.shape) for name, value in values.items()})
        binding = self._session.io_binding()  # a new one each time: a bound output's memory would be reused
        for name, value in values.items():
            binding.bind_ortvalue_input(name, self._ort_value(value))
        for spec in self.outputs:
            binding.bind_output(spec.name, self.device, self.device_id)
        try:
            if self.device != "cpu":
                binding.synchronize_inputs()  # they may still be on their way to the device
            self._session.run_with_iobinding(binding)
        except Exception as error:  # the binding's exceptions share no base but Exception
            raise EdgeVQAError(f"Graph '{self.name}' failed in ONNX Runtime: {first_line(error)}") from error
        found = binding.get_outputs()
        return {spec.name: OrtTensor(value) for spec, value in zip(self.outputs, found, strict=True)}

    def close(self) -> None:
        """Free the session; closing twice is harmless."""
        self._session = None

    def __enter__(self) -> OrtSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _settings(self, options: SessionOptions) -> Any:
        settings = self._ort.SessionOptions()
        settings.intra_op_num_threads = options.threads
        settings.log_severity_level = 3  # errors only
        # Each graph has its own threads: those of one graph must not spin while the next one runs.
        settings.add_session_config_entry("session.force_spinning_stop", "1")
        if options.map_weights:
            settings.add_session_config_entry("session.disable_prepacking", "1")
        return settings

    def _load(self, path: Path, options: SessionOptions) -> Any:
        settings = self._settings(options)
        provider = ("CPUExecutionProvider", dict(options.provider_options))
        try:
            return self._ort.InferenceSession(str(path), settings, providers=[provider])
        except Exception as error:  # see run
            raise BundleError(
                f"ONNX Runtime {self._ort.__version__} cannot load {path}: {first_line(error)} "
                "Upgrade onnxruntime, or export the bundle again."
            ) from error

    def _check_signature(self, path: Path) -> None:
        """The file must have the manifest's inputs and outputs."""
        for kind, specs, nodes in (
            ("inputs", self.inputs, self._session.get_inputs()),
            ("outputs", self.outputs, self._session.get_outputs()),
        ):
            have = {node.name: _DTYPES.get(node.type, node.type) for node in nodes}
            want = {spec.name: spec.dtype for spec in specs}
            if have != want:
                wrong = ", ".join(sorted({name for name, _ in have.items() ^ want.items()}))
                raise BundleError(f"{path} has other {kind} than the manifest says: {wrong}. Export the bundle again.")

    def _ort_value(self, value: OrtTensor | Array) -> Any:
        if isinstance(value, OrtTensor):
            return value.value
        return self._ort.OrtValue.ortvalue_from_numpy(value)  # no copy: it reads the array's memory


def open_session(bundle: Bundle, variant: str, graph: str, options: SessionOptions) -> OrtSession:
    """Load one graph of the bundle. The caller closes the session."""
    kind: type[OrtSession] = OrtSession
    if options.profile:
        from edgevqa.runtime.sessions.ort_profile import ProfiledOrtSession

        kind = ProfiledOrtSession
    return kind(bundle.graph_path(variant, graph), graph, bundle.graph(variant, graph), options)


def _native(value: Tensor | Array, device: str) -> OrtTensor | Array:
    """Our own tensors as they are, unless they lie out of reach; else a contiguous host array in native byte order."""
    if isinstance(value, OrtTensor) and value.device in ("cpu", device):
        return value
    array = value if isinstance(value, np.ndarray) else value.numpy()
    return np.asarray(array, dtype=np.dtype(array.dtype.str.replace(">", "=")), order="C")


def _dtype(value: OrtTensor | Array) -> str:
    return value.dtype if isinstance(value, OrtTensor) else str(value.dtype)


def first_line(error: Exception) -> str:
    """What ONNX Runtime says first; the rest are its own lines of code."""
    return str(error).strip().partition("\n")[0]
