"""One engine, loaded: its tensors, and the contexts that run it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from edgevqa.runtime.bundle_checks import build_line
from edgevqa.runtime.engines import NO_BUNDLE, EngineRecord
from edgevqa.runtime.errors import BundleError, EdgeVQAError, UnavailableError
from edgevqa.runtime.manifest import TensorSpec
from edgevqa.runtime.sessions.trt.device import Device, Lane
from edgevqa.runtime.sessions.trt.dtypes import TENSORRT_NAMES
from edgevqa.runtime.sessions.trt.options import EngineOptions
from edgevqa.runtime.sessions.trt.runtime_cache import RuntimeCache
from edgevqa.runtime.sessions.trt.tensors import Buffer
from edgevqa.runtime.sessions.trt.toolkit import Toolkit


class Engine:
    """A deserialised engine and how its contexts are made."""

    def __init__(
        self,
        toolkit: Toolkit,
        device: Device,
        path: Path,
        graph: str,
        record: EngineRecord,
        options: EngineOptions,
    ) -> None:
        """Raises `BundleError` with TensorRT's reason where the file cannot be loaded."""
        self.toolkit = toolkit
        self.device = device
        self.graph = graph
        device.cuda.use()
        self._runtimes = _make_runtimes(toolkit, record, options)
        _choose_dla(self._runtimes[-1], record, path)
        self._dla = record.dla_core is not None
        self.handle: Any = self._runtimes[-1].deserialize_cuda_engine(path.read_bytes())
        if self.handle is None:
            raise BundleError(
                f"TensorRT cannot load {path}: {toolkit.complaint()}. "
                f"Build it again here: {_again(path, record)} --rebuild"
            )
        names = [self.handle.get_tensor_name(number) for number in range(self.handle.num_io_tensors)]
        location = toolkit.module.TensorLocation.HOST
        self.on_host = {name for name in names if self.handle.get_tensor_location(name) == location}
        self._making = threading.Lock()  # making contexts of one engine is not for several threads at once
        self._rtx = hasattr(self.handle, "create_runtime_config") and toolkit.flavour == "tensorrt-rtx"
        self._builtin_graphs = options.cuda_graphs and self._rtx
        self._configuration: Any = None
        self._kept: RuntimeCache | None = None
        if self._rtx:
            self._kept = RuntimeCache(toolkit, device.cuda.info, record.graphs[graph].sha256)

    def check_signature(self, path: Path, inputs: list[TensorSpec], outputs: list[TensorSpec]) -> None:
        """Raise `BundleError` unless the engine has these tensors, with these dtypes."""
        mode = self.toolkit.module.TensorIOMode
        names = [self.handle.get_tensor_name(number) for number in range(self.handle.num_io_tensors)]
        for kind, specs in ((mode.INPUT, inputs), (mode.OUTPUT, outputs)):
            have = {name: self._dtype(name) for name in names if self.handle.get_tensor_mode(name) == kind}
            want = {spec.name: spec.dtype for spec in specs}
            if have != want:
                wrong = ", ".join(sorted({name for name, _ in have.items() ^ want.items()}))
                which = "inputs" if kind == mode.INPUT else "outputs"
                raise BundleError(f"{path} has other {which} than the manifest says: {wrong}. Build the engine again.")

    def make_context(self, lane: Lane, profile: int, scratch: Buffer | None) -> Any:
        """A context of its own for one profile, with `scratch` (see `scratch_bytes`) to work in."""
        strategy = self.toolkit.module.ExecutionContextAllocationStrategy.USER_MANAGED
        with self._making:
            if self._rtx and self._configuration is None:
                self._configuration = self._configure(strategy)
            context = self.handle.create_execution_context(self._configuration if self._rtx else strategy)
        if context is None or not _selects(context, profile, int(lane.stream)):
            raise EdgeVQAError(
                f"TensorRT made no context for graph '{self.graph}': {self.toolkit.complaint()}. "
                "If memory is short, close other programs or use a smaller precision."
            )
        if scratch is not None:
            context.set_device_memory(scratch.address, self.scratch_bytes(profile))
        return context

    def scratch_bytes(self, profile: int) -> int:
        """What a context of the profile needs to work in; contexts that never run at once may share it."""
        return int(self.handle.get_device_memory_size_for_profile_v2(profile))

    @property
    def captures(self) -> bool:
        """Whether launches may be captured by us: not TensorRT-RTX's, a DLA's, or those with shapes read on the host."""
        return not self._rtx and not self.on_host and not self._dla

    def close(self) -> None:
        """Let the engine go; its contexts must have gone before. What TensorRT-RTX compiled is kept for the next start."""
        if self._kept is not None:
            self._kept.save()
            self._kept = None
        self._configuration = None
        self.handle = None
        while self._runtimes:
            self._runtimes.pop()

    def _configure(self, strategy: Any) -> Any:
        """How TensorRT-RTX runs; one for all contexts, which it outlives."""
        configuration = self.handle.create_runtime_config()
        configuration.set_execution_context_allocation_strategy(strategy)
        strategies = self.toolkit.module.CudaGraphStrategy
        wanted = strategies.WHOLE_GRAPH_CAPTURE if self._builtin_graphs else strategies.DISABLED
        configuration.cuda_graph_strategy = wanted
        if self._kept is not None:
            self._kept.attach(configuration)
        return configuration

    def _dtype(self, name: str) -> str:
        member: str = self.handle.get_tensor_dtype(name).name
        return TENSORRT_NAMES.get(member, member.lower())


def _selects(context: Any, profile: int, stream: int) -> bool:
    """Whether a context takes a profile: TensorRT's Python raises where its C++ returns false."""
    try:
        return bool(context.set_optimization_profile_async(profile, stream))
    except RuntimeError:
        return False


def _choose_dla(runtime: Any, record: EngineRecord, path: Path) -> None:
    """Load the engine for the DLA that it was built for: TensorRT takes the first one unless it is told."""
    if record.dla_core is None:
        return
    cores = int(runtime.num_DLA_cores)
    if record.dla_core >= cores:
        raise BundleError(
            f"{path} was built for DLA core {record.dla_core}; TensorRT finds {cores} here. "
            f"Build it again here with a --dla-core that is there, or with none: {_again(path, record)}"
        )
    runtime.DLA_core = record.dla_core


def _again(path: Path, record: EngineRecord) -> str:
    """The command that builds an engine anew; it lies in `engines/TARGET/VARIANT` of its bundle."""
    return build_line(path.parents[3] if len(path.parents) > 3 else NO_BUNDLE, record.target, record.variant)


def _make_runtimes(toolkit: Toolkit, record: EngineRecord, options: EngineOptions) -> list[Any]:
    """TensorRT's runtime; a version-compatible engine needs the lean runtime that it carries, or that of a file.

    The last one loads the engine, and must go before the others.
    """
    try:
        runtime = toolkit.module.Runtime(toolkit.logger)
    except TypeError as error:  # what its Python makes of a runtime that could not be made
        raise UnavailableError(
            f"TensorRT cannot run here: {toolkit.complaint()}. Look at the GPU and its driver: edgevqa doctor"
        ) from error
    if not record.version_compatible:
        return [runtime]
    if options.runtime_library is not None:
        loaded = runtime.load_runtime(str(options.runtime_library))
        if loaded is None:
            raise UnavailableError(
                f"TensorRT cannot load the lean runtime {options.runtime_library}: {toolkit.complaint()}. "
                "It must be of the version that built the engines."
            )
        return [runtime, loaded]
    if not options.allow_engine_code:
        raise BundleError(
            f"The engines for '{record.target}' are version-compatible: they carry their runtime, which is a program. If you "
            "trust the bundle's maker, pass the provider option allow_engine_code=1; or give runtime_library=FILE."
        )
    runtime.engine_host_code_allowed = True
    return [runtime]
