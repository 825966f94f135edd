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

from edgevqa.export.engine.capabilities import check_network
from edgevqa.export.engine.flavours import Toolkit, capability_member, load_toolkit
from edgevqa.export.engine.inspector import inspect_plan
from edgevqa.export.engine.network import add_profiles, advice, high_layers, parse_network, tensors
from edgevqa.export.engine.protocol import Built, Inspected, Job, Message, Phase, Refused, encode_line
from edgevqa.export.engine.timing import keep_timing_cache, open_timing_cache
from edgevqa.runtime.errors import CheckFailed, EdgeVQAError, InputError, UnavailableError
from edgevqa.runtime.plans import HEADER_BYTES, parse_header
from edgevqa.runtime.processes import ORPHANED, end_with_input, end_with_parent
from edgevqa.runtime.staging import explain_write_error
from edgevqa.runtime.telemetry.memory import peak_memory_mb

_TOLD_EVERY_S = 0.2
# Said of every build, and true of ours: the runtime binds INT64, and TensorRT-RTX tunes when it loads.
_KNOWN_WARNINGS = ("has Int64 binding", "timing cache will not be used", "Timing cache will not be used")


class Cancelled(Exception):
    """The parent asked to stop."""


class Stop:
    """Whether the parent asked to stop; TensorRT asks at every step."""

    def __init__(self) -> None:
        self.asked = False

    def ask(self, *_: object) -> None:
        self.asked = True


def main() -> int:
    """Build the job on standard input, which stays open as long as it is wanted. 0 when it was built or the reason was told."""
    with _standard_output_to_errors() as out:
        end_with_parent()
        stop = Stop()
        signal.signal(signal.SIGTERM, stop.ask)
        line = sys.stdin.buffer.readline()
        if not line:
            return ORPHANED
        end_with_input()
        job = msgspec.json.decode(line, type=Job)
        refused: EdgeVQAError | None = None
        try:
            build(job, stop, lambda message: _write(out, encode_line(message)))
        except Cancelled:
            return 130
        except EdgeVQAError as error:
            refused = error
        except OSError as error:
            refused = explain_write_error(error, Path(job.engine))
            if refused is None:
                raise
        if refused is not None:
            _write(out, encode_line(Refused(message=str(refused), exit_code=refused.exit_code)))
    return 0


def build(job: Job, stop: Stop, tell: Callable[[Message], None]) -> Built:
    """Parse, build and write one engine, then ask it what it is; each is told when it is known, and all is given.

    Raises `CheckFailed` with TensorRT's reason, and `Cancelled`.
    """
    toolkit = load_toolkit(job.options.row)
    logger = make_logger(toolkit.module)
    built, plan = _make(job, toolkit, logger, stop, tell)  # what built it is gone then: loading takes memory as well
    tell(built)
    inspected = inspect_plan(toolkit.module, logger, plan, job) if job.half else Inspected()
    tell(inspected)
    return inspected.added_to(built)


def _make(job: Job, toolkit: Toolkit, logger: Any, stop: Stop, tell: Callable[[Message], None]) -> tuple[Built, Any]:
    """The engine, written, and its plan."""
    started = time.monotonic()
    trt = toolkit.module
    builder = _builder(trt, logger)
    config = _configure(toolkit, builder, job)
    cache = open_timing_cache(config, job, logger)
    network, parser = parse_network(toolkit, builder, logger, Path(job.onnx), job.graph, job.options.target)
    check_network(job.options.compute_capabilities, job.graph, network, trt.DataType.FLOAT)
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
    built = Built(
        version=parse_header(bytes(memoryview(plan)[:HEADER_BYTES]), where=job.engine).version,
        profiles=profiles,
        inputs=inputs,
        outputs=outputs,
        high_layers=names,
        high_operators=operators,
        seconds=time.monotonic() - started,
        peak_memory_mb=peak_memory_mb() or 0.0,
        warnings=[*unkept, *logger.warnings[:20]],
    )
    return built, plan


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


def make_monitor(trt: Any, stop: Stop, tell: Callable[[Message], None]) -> Any:
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
    _set_capabilities(toolkit, config, options.compute_capabilities)
    return config


def _set_capabilities(toolkit: Toolkit, config: Any, wanted: tuple[str, ...]) -> None:
    """TensorRT-RTX builds for the GPUs that are named; TensorRT for the one at hand."""
    if not wanted:
        return
    config.num_compute_capabilities = len(wanted)
    for number, capability in enumerate(wanted):
        config.set_compute_capability(capability_member(toolkit, capability), number)


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
