"""The ONNX Runtime backend on the CPU: arrays are read where they lie, and outputs flow on without a copy."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.errors import BundleError, EdgeVQAError, require
from edgevqa.runtime.manifest import GraphSpec, TensorSpec
from edgevqa.runtime.sessions.base import Array, SessionOptions, Tensor
from edgevqa.runtime.sessions.checks import Described, check_inputs

_SLOW_FUSIONS = ["SkipLayerNormFusion"]  # on CPUs slower than the Add and the norm that it replaces
DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
    "tensor(bool)": "bool",
    **{f"tensor({sign}int{bits})": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


class HostTensor:
    """An output of a session on the CPU: an array in ONNX Runtime's memory, which lives as long as the array."""

    __slots__ = ("array",)

    def __init__(self, array: Array) -> None:
        self.array = array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def nbytes(self) -> int:
        """What it holds, in bytes."""
        return self.array.nbytes

    def numpy(self) -> Array:
        """A host copy, owned by the caller."""
        return self.array.copy()


class OrtSession:
    """One graph in ONNX Runtime. `run` may be called from several threads; `close` may not be called during a run."""

    def __init__(self, path: Path, name: str, spec: GraphSpec, options: SessionOptions) -> None:
        self._ort: Any = require("onnxruntime", extra="cpu", purpose="Running a model with ONNX Runtime")
        self.name = name
        self.inputs: list[TensorSpec] = spec.inputs
        self.outputs: list[TensorSpec] = spec.outputs
        self._names = [output.name for output in self.outputs]
        self._session: Any = self._load(path, options)
        self._check_signature(path)

    def run(self, inputs: Mapping[str, Tensor | Array]) -> dict[str, Tensor]:
        """Run the graph. Arrays are read in place during the call (copied first where not contiguous).

        Raises `InputError` naming the graph and what it expects for wrong names, dtypes or shapes. Outputs belong to
        the caller and stay valid after the next `run` and after `close`.
        """
        values = {name: host_array(value) for name, value in inputs.items()}
        session = self._checked({name: (dtype_name(value.dtype), value.shape) for name, value in values.items()})
        try:
            found = session.run(self._names, values)
        except Exception as error:  # the binding's exceptions share no base but Exception
            raise self._failed(error) from error
        return {name: HostTensor(array) for name, array in zip(self._names, found, strict=True)}

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
            return self._ort.InferenceSession(
                str(path), settings, providers=[provider], disabled_optimizers=_SLOW_FUSIONS
            )
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
            have = {node.name: DTYPES.get(node.type, node.type) for node in nodes}
            want = {spec.name: spec.dtype for spec in specs}
            if have != want:
                wrong = ", ".join(sorted({name for name, _ in have.items() ^ want.items()}))
                raise BundleError(f"{path} has other {kind} than the manifest says: {wrong}. Export the bundle again.")

    def _checked(self, given: Described) -> Any:
        """The open session. Raises `EdgeVQAError` after `close`, and `InputError` for inputs that are not the graph's."""
        if self._session is None:
            raise EdgeVQAError(f"Graph '{self.name}' was closed; load the pipeline again.")
        check_inputs(self.name, self.inputs, given)
        return self._session

    def _failed(self, error: Exception) -> EdgeVQAError:
        return EdgeVQAError(f"Graph '{self.name}' failed in ONNX Runtime: {first_line(error)}")


def open_session(bundle: Bundle, variant: str, graph: str, options: SessionOptions) -> OrtSession:
    """Load one graph of the bundle. The caller closes the session."""
    kind: type[OrtSession] = OrtSession
    if options.profile:
        from edgevqa.runtime.sessions.ort_profile import ProfiledOrtSession

        kind = ProfiledOrtSession
    return kind(bundle.graph_path(variant, graph), graph, bundle.graph(variant, graph), options)


def host_array(value: Tensor | Array) -> Array:
    """A contiguous array in native byte order: the value itself where it is one."""
    if isinstance(value, HostTensor):
        return value.array
    array = value if isinstance(value, np.ndarray) else value.numpy()
    if array.flags.c_contiguous and array.dtype.isnative:
        return array
    return np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")


@functools.cache
def dtype_name(dtype: np.dtype[Any]) -> str:
    """Such as `float32`; kept, for numpy is slow to tell it, and it is asked for every input of every token."""
    return str(dtype)


def first_line(error: Exception) -> str:
    """What ONNX Runtime says first; the rest are its own lines of code."""
    return str(error).strip().partition("\n")[0]
