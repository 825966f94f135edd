"""The building process: reads one job from standard input, writes an engine, and tells its progress as JSON lines."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from edgevqa.export.engine.capabilities import built_for, check_network
from edgevqa.export.engine.flavours import Toolkit, capability_member, load_toolkit, refuse_impossible
from edgevqa.export.engine.inspector import Inspected, inspect_plan
from edgevqa.export.engine.network import advice, high_layers, parse_network, tensors
from edgevqa.export.engine.protocol import Built, Job, Phase, Refused, encode_line
from edgevqa.export.engine.shapes import add_profiles
from edgevqa.export.engine.timing import keep_timing_cache, open_timing_cache
from edgevqa.runtime.errors import CheckFailed, EdgeVQAError, InputError, UnavailableError
from edgevqa.runtime.plans import HEADER_BYTES, parse_header
from edgevqa.runtime.processes import end_with_parent, is_orphan
from edgevqa.runtime.staging import explain_write_error

_TOLD_EVERY_S = 0.2
# Said of every build, and true of ours: the runtime binds INT64, and TensorRT-RTX tunes when it loads.
_KNOWN_WARNINGS = ("has Int64 binding", "timing cache will not be used", "Timing cache will not be used")


class Cancelled(Exception):
    """The parent asked to stop."""


class Stop:
    """Whether the parent asked to stop, or is gone; TensorRT asks at every step."""

    def __init__(self, parent: int | None = None) -> None:
        """`parent`: the process id of one that this process must not outlive."""
        self._asked, self._parent = False, parent

    def ask(self, *_: object) -> None:
        self._asked = True

    @property
    def asked(self) -> bool:
        return self._asked or (self._parent is not None and is_orphan(self._parent))


def main() -> int:
    """Build the job on standard input. 0 when it was built or the reason was told."""
    with _standard_output_to_errors() as out:
        parent = int(sys.argv[1]) if sys.argv[1:] else None
        if parent is not None:
            end_with_parent(parent)
        stop = Stop(parent)
        signal.signal(signal.SIGTERM, stop.ask)
        job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)
        try:
            line = encode_line(build(job, stop, lambda phase: _write(out, encode_line(phase))))
        except Cancelled:
            return 130
        except EdgeVQAError as error:
            line = encode_line(Refused(message=str(error), exit_code=error.exit_code))
        except OSError as error:
            clear = explain_write_error(error, Path(job.engine))
            if clear is None:
                raise
            line = encode_line(Refused(message=str(clear), exit_code=clear.exit_code))
        _write(out, line)
    return 0


def build(job: Job, stop: Stop, tell: Callable[[Phase], None]) -> Built:
    """Parse, build and write one engine. Raises `CheckFailed` with TensorRT's reason, and `Cancelled`."""
    started = time.monotonic()
    toolkit = load_toolkit(job.options.row)
    refuse_impossible(job.options, toolkit)
    trt = toolkit.module
    logger = make_logger(trt)
    builder = _builder(trt, logger)
    config = _configure(toolkit, builder, job)
    cache = open_timing_cache(config, job, logger)
    network, parser = parse_network(toolkit, builder, logger, Path(job.onnx), job.graph, job.options.target)
    check_network(built_for(job.options, job.numerics, toolkit), job.graph, network, trt.DataType.FLOAT)
    inputs, outputs = tensors(network)
    profiles = add_profiles(builder, config, job)
    config.progress_monitor = make_monitor(trt, stop, tell)
    plan = builder.build_serialized_network(network, config)
    del parser
    if plan is None:
        if stop.asked:
            raise Cancelled
        said = logger.errors[-1] if logger.errors else "the builder gave no reason"
        raise CheckFailed(f"TensorRT cannot build graph '{job.graph}': {said}. {advice(said, job.options.target)}")
    Path(job.engine).write_bytes(memoryview(plan))
    unkept = keep_timing_cache(cache, config, job)
    names, operators = high_layers(toolkit, network) if job.half else ([], {})
    warnings = [*unkept, *logger.warnings[:20]]
    engine = inspect_plan(trt, logger, plan, job) if job.half else Inspected()
    return Built(
        version=parse_header(bytes(memoryview(plan)[:HEADER_BYTES]), where=job.engine).version,
        profiles=profiles,
        inputs=inputs,
        outputs=outputs,
        high_layers=names,
        high_operators=operators,
        fp32_layers=engine.layers,
        seconds=time.monotonic() - started,
        peak_memory_mb=peak_memory_mb(),
        warnings=[*warnings, *([engine.warning] if engine.warning else [])],
    )


def _builder(trt: Any, logger: Any) -> Any:
    try:
        return trt.Builder(logger)
    except TypeError as error:  # what its Python makes of a builder that could not be made
        said = logger.errors[-1] if logger.errors else str(error)
        raise UnavailableError(
            f"TensorRT cannot build here: {said}. Look at the GPU and its driver: edgevqa doctor"
        ) from error


def make_logger(trt: Any) -> Any:
    """A logger that keeps errors and warnings as they came."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                self.errors.append(" ".join(msg.split()))
            elif severity == trt.ILogger.Severity.WARNING and not any(each in msg for each in _KNOWN_WARNINGS):
                self.warnings.append(" ".join(msg.split()))

    return Logger()


def make_monitor(trt: Any, stop: Stop, tell: Callable[[Phase], None]) -> Any:
    """A progress monitor that tells the outermost phase and its steps, and cancels when `stop` was asked."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.phases: dict[str, tuple[str | None, int]] = {}
            self.told = 0.0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.phases[phase_name] = (parent_phase, num_steps)
            if not parent_phase:
                tell(Phase(name=phase_name, done=0, total=num_steps))

        def step_complete(self, phase_name: str, step: int) -> bool:
            parent, total = self.phases.get(phase_name, (None, 0))
            if not parent and time.monotonic() - self.told > _TOLD_EVERY_S:
                self.told = time.monotonic()
                tell(Phase(name=phase_name, done=step + 1, total=total))
            return not stop.asked

        def phase_finish(self, phase_name: str) -> None:
            parent, total = self.phases.pop(phase_name, (None, 0))
            if not parent:
                tell(Phase(name=phase_name, done=total, total=total))

    return Monitor()


def _configure(toolkit: Toolkit, builder: Any, job: Job) -> Any:
    trt, options = toolkit.module, job.options
    config = builder.create_builder_config()
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    flags = [
        ("VERSION_COMPATIBLE", options.version_compatible),
        ("STRIP_PLAN", options.strip_weights),
        ("REFIT", options.refit),
        ("GPU_FALLBACK", options.dla_core is not None),
    ]
    for name, wanted in flags:
        if wanted:
            config.set_flag(getattr(trt.BuilderFlag, name))
    if not job.half:
        config.clear_flag(trt.BuilderFlag.TF32)  # it is on by itself; float32 stays float32, as on every other backend
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if options.dla_core is not None:
        if options.dla_core >= builder.num_DLA_cores:
            raise InputError(f"--dla-core {options.dla_core}: TensorRT finds {builder.num_DLA_cores} DLA cores here.")
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = options.dla_core
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the inspector can then name our layers
    _set_capabilities(toolkit, config, built_for(options, job.numerics, toolkit))
    return config


def _set_capabilities(toolkit: Toolkit, config: Any, wanted: tuple[str, ...]) -> None:
    """TensorRT-RTX builds for the GPUs that are named; TensorRT for the one at hand."""
    if not wanted:
        return
    config.num_compute_capabilities = len(wanted)
    for number, capability in enumerate(wanted):
        config.set_compute_capability(capability_member(toolkit, capability), number)


def peak_memory_mb() -> float:
    """The process's highest resident size so far, in MB of 10^6 bytes; 0 where the system does not say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024 / 1e6
    return 0.0


@contextlib.contextmanager
def _standard_output_to_errors() -> Any:
    """TensorRT's own prints must not mix with our lines: keep standard output for us, give it standard error."""
    ours = os.dup(1)
    os.dup2(2, 1)
    try:
        yield ours
    finally:
        os.close(ours)


def _write(out: int, line: bytes) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(out, line)


if __name__ == "__main__":
    sys.exit(main())
