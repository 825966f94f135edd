"""A strict simulator of TensorRT's builder, for tests alone: it keeps what it was told, and refuses what the real one does.

What it refuses was seen of TensorRT-RTX 1.7.1 on a CPU, and what its documentation says of DLAs: unknown attributes, wrong
kinds, members that a version lacks, profiles that are not in order or do not fit, networks without a type or an output. Its
plans have a valid header and no kernels. It proves nothing about what TensorRT builds.
"""

from __future__ import annotations

import importlib.machinery
import struct
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from tests.simulators.builder_inspector import runtime_class
from tests.simulators.builder_network import Network, OnnxParser
from tests.simulators.builder_types import (
    DeviceType,
    Enumerations,
    IProgressMonitor,
    LayerInformationFormat,
    ProfilingVerbosity,
    Strict,
    Version,
    takes,
)
from tests.simulators.tensorrt_types import DataType, ExecutionContextAllocationStrategy, ILogger, Severity

Shape = tuple[int, ...]
Sides = tuple[Shape, Shape, Shape]
STEPS = 4


@dataclass
class Told:
    """What one build was told, as the builder had it when it began."""

    flags: set[str]
    pools: dict[str, int]
    level: int
    device: str
    dla_core: int
    hardware: str
    verbosity: str
    profiles: list[dict[str, Sides]]
    capabilities: list[str]
    strongly_typed: bool
    cache: bytes | None


@dataclass
class Settings:
    """What the simulated machine and TensorRT are like: tests set it.

    `layers` is what the inspector tells of engines; without it there is no GPU, and no engine can be loaded. `says` are
    lines that the builder logs, `fails` makes it refuse. `stamp` is the mark of the GPU in timing caches.
    """

    dla_cores: int = 0
    layers: str | None = None
    says: list[tuple[Severity, str]] = field(default_factory=list)
    fails: bool = False
    takes_cache: bool = True
    stamp: bytes = b"gpu0"


class TimingCache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes:
        return self.content


class OptimizationProfile:
    def __init__(self) -> None:
        self.sides: dict[str, Sides] = {}

    def set_shape(self, input: str, min: Shape, opt: Shape, max: Shape) -> None:
        takes("set_shape", input, str)
        for side in (min, opt, max):
            takes("set_shape", side, tuple)
        self.sides[input] = (min, opt, max)

    def get_shape(self, input: str) -> list[Shape]:
        return list(self.sides.get(input, ()))

    @property
    def in_order(self) -> bool:
        ordered = [
            len(low) == len(usual) == len(high)
            and all(0 <= a <= b <= c for a, b, c in zip(low, usual, high, strict=True))
            for low, usual, high in self.sides.values()
        ]
        return all(ordered)


class BuilderConfig(Strict):
    def __init__(self, module: BuilderSimulator, logger: Any) -> None:
        kinds: dict[str, tuple[type, ...]] = {
            "builder_optimization_level": (int,),
            "default_device_type": (DeviceType,),
            "DLA_core": (int,),
            "hardware_compatibility_level": (module.HardwareCompatibilityLevel,),
            "profiling_verbosity": (ProfilingVerbosity,),
            "progress_monitor": (IProgressMonitor, type(None)),
        }
        if module.rtx:
            kinds["num_compute_capabilities"] = (int,)
        values = {
            "builder_optimization_level": 3,
            "default_device_type": DeviceType.GPU,
            "DLA_core": -1,
            "hardware_compatibility_level": module.HardwareCompatibilityLevel["NONE"],
            "profiling_verbosity": ProfilingVerbosity.LAYER_NAMES_ONLY,
            "progress_monitor": None,
            "module": module,
            "logger": logger,
            "flags": {"TF32"},
            "pools": {},
            "profiles": [],
            "capabilities": {},
            "cache": None,
        }
        super().__init__(kinds, values | ({"num_compute_capabilities": 0} if module.rtx else {}))

    module: BuilderSimulator
    logger: Any
    flags: set[str]
    pools: dict[str, int]
    profiles: list[OptimizationProfile]
    capabilities: dict[int, str]
    cache: TimingCache | None
    builder_optimization_level: int
    default_device_type: DeviceType
    DLA_core: int
    hardware_compatibility_level: Any
    profiling_verbosity: ProfilingVerbosity
    progress_monitor: Any
    num_compute_capabilities: int

    def set_flag(self, flag: Any) -> None:
        takes("set_flag", flag, self.module.BuilderFlag)
        self.flags.add(flag.name)

    def clear_flag(self, flag: Any) -> None:
        takes("clear_flag", flag, self.module.BuilderFlag)
        self.flags.discard(flag.name)

    def get_flag(self, flag: Any) -> bool:
        takes("get_flag", flag, self.module.BuilderFlag)
        return flag.name in self.flags

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        takes("set_memory_pool_limit", pool, self.module.MemoryPoolType)
        takes("set_memory_pool_limit", pool_size, int)
        if pool_size < 0:
            raise TypeError(f"set_memory_pool_limit: incompatible function arguments: {pool_size}")
        self.pools[pool.name] = pool_size

    def create_timing_cache(self, serialized_timing_cache: bytes) -> TimingCache:
        """An empty one, with a warning, where the bytes are no timing cache."""
        takes("create_timing_cache", serialized_timing_cache, bytes, bytearray, memoryview)
        data = bytes(serialized_timing_cache)
        if data and not data.startswith(b"timings:"):
            self.logger.log(Severity.WARNING, "Failed to deserialize timing cache. Returning an empty timing cache.")
            data = b""
        return TimingCache(data or b"timings:" + self.module.settings.stamp)

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        """Not that of another GPU."""
        takes("set_timing_cache", cache, TimingCache)
        takes("set_timing_cache", ignore_mismatch, bool)
        fits = cache.content.startswith(b"timings:" + self.module.settings.stamp)
        if not self.module.settings.takes_cache or not (fits or ignore_mismatch):
            return False
        object.__setattr__(self, "cache", cache)
        return True

    def get_timing_cache(self) -> TimingCache | None:
        return self.cache

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.profiles)

    def add_optimization_profile(self, profile: OptimizationProfile) -> int:
        takes("add_optimization_profile", profile, OptimizationProfile)
        if not profile.in_order:
            self.logger.log(Severity.ERROR, "Parameter check failed, condition: profile->isValid().")
            return -1
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def set_compute_capability(self, compute_capability: Any, index: int) -> bool:
        if not self.module.rtx:
            raise AttributeError("'IBuilderConfig' object has no attribute 'set_compute_capability'")
        takes("set_compute_capability", compute_capability, self.module.ComputeCapability)
        if not 0 <= index < self.num_compute_capabilities:
            return False
        self.capabilities[index] = compute_capability.name
        return True

    def told(self, *, strongly_typed: bool) -> Told:
        return Told(
            flags=set(self.flags),
            pools=dict(self.pools),
            level=min(self.builder_optimization_level, 5),
            device=self.default_device_type.name,
            dla_core=self.DLA_core,
            hardware=self.hardware_compatibility_level.name,
            verbosity=self.profiling_verbosity.name,
            profiles=[dict(profile.sides) for profile in self.profiles],
            capabilities=[self.capabilities[index] for index in sorted(self.capabilities)],
            strongly_typed=strongly_typed,
            cache=None if self.cache is None else self.cache.content,
        )


class BuilderSimulator(ModuleType):
    """The parts of `tensorrt` or `tensorrt_rtx` that edgevqa uses to build engines. `builds` is what it was told."""

    DataType = DataType
    DeviceType = DeviceType
    ProfilingVerbosity = ProfilingVerbosity
    LayerInformationFormat = LayerInformationFormat
    ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy
    IProgressMonitor = IProgressMonitor
    ILogger = ILogger
    OnnxParser = OnnxParser

    def __init__(self, name: str = "tensorrt", version: Version = (10, 3, 0, 30), **settings: Any) -> None:
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)
        self.rtx = name == "tensorrt_rtx"
        self.version = version
        self.__version__ = ".".join(map(str, version if self.rtx else version[:3]))  # as JetPack's: without the build
        self.settings = Settings(**settings)
        self.builds: list[Told] = []
        members = Enumerations(version, rtx=self.rtx)
        self.BuilderFlag, self.NetworkDefinitionCreationFlag = members.builder_flag, members.network_flag
        self.HardwareCompatibilityLevel, self.MemoryPoolType = members.hardware_level, members.pool
        if self.rtx:
            self.ComputeCapability = members.capability
        self.Builder = _builder_class(self)
        self.Runtime = runtime_class(self)


def _builder_class(module: BuilderSimulator) -> Any:
    class Builder:
        def __init__(self, logger: ILogger) -> None:
            takes("Builder", logger, ILogger)
            self.logger = logger

        @property
        def num_DLA_cores(self) -> int:
            return module.settings.dla_cores

        def create_network(self, flags: int = 0) -> Network | None:
            takes("create_network", flags, int)
            members = {1 << int(member): member.name for member in module.NetworkDefinitionCreationFlag}
            if flags & ~sum(members):
                self.logger.log(Severity.ERROR, "Parameter check failed, condition: flagSet.toU32() is known")
                return None
            named = {name for bit, name in members.items() if flags & bit}
            return Network(strongly_typed="STRONGLY_TYPED" in named or module.rtx or module.version[0] >= 11)

        def create_builder_config(self) -> BuilderConfig:
            return BuilderConfig(module, self.logger)

        def create_optimization_profile(self) -> OptimizationProfile:
            return OptimizationProfile()

        def build_serialized_network(self, network: Network, config: BuilderConfig) -> bytes | None:
            takes("build_serialized_network", network, Network)
            takes("build_serialized_network", config, BuilderConfig)
            told = config.told(strongly_typed=network.strongly_typed)
            module.builds.append(told)
            for severity, line in module.settings.says:
                self.logger.log(severity, line)
            wrong = _refusal(module, network, told)
            if wrong:
                self.logger.log(Severity.ERROR, wrong)
            if wrong or module.settings.fails or not _report(config.progress_monitor):
                return None
            if config.cache is not None:
                config.cache.content += b"+tactics"
            tag = b"vtrt" if module.rtx else b"ftrt"
            return tag + struct.pack("<I", 239) + bytes(16) + bytes(module.version) + bytes(36) + repr(told).encode()

    return Builder


def _refusal(module: BuilderSimulator, network: Network, told: Told) -> str | None:
    """Why this network is not built, if it is not."""
    if not network.outputs:
        return "Network must have at least one output."
    if network.strongly_typed and told.flags & {"FP16", "INT8"}:
        return "Precision flags must not be set for a strongly typed network."
    needs_driver = told.flags & {"REFIT", "STRIP_PLAN", "VERSION_COMPATIBLE"}
    if module.rtx and needs_driver:
        return f"{', '.join(sorted(needs_driver))} cannot be built without a driver."
    if told.device == "DLA" and not 0 <= told.dla_core < module.settings.dla_cores:
        return f"DLA core {told.dla_core} is not there."
    if told.device == "DLA" and "GPU_FALLBACK" not in told.flags:
        return "A layer cannot run on DLA, and GPU fallback is not enabled."
    moving = [tensor for tensor in network.inputs if -1 in tensor.shape]
    if moving and not told.profiles:
        return "Network has dynamic or shape inputs, but no optimization profile has been defined."
    for number, profile in enumerate(told.profiles):
        for tensor in moving:
            sides = profile.get(tensor.name, ())
            if not sides or any(not _fits(tensor.shape, side) for side in sides):
                return f"Dynamic input tensor {tensor.name} is missing dimensions in profile {number}."
            if told.device == "DLA" and (len(told.profiles) > 1 or len(set(sides)) > 1):
                return f"DLA does not support dynamic shapes: {tensor.name}."
    return None


def _fits(shape: Shape, side: Shape) -> bool:
    return len(shape) == len(side) and all(have in (-1, size) for have, size in zip(shape, side, strict=True))


def _report(monitor: Any) -> bool:
    """Tell the monitor of two phases, one within the other. False where it cancelled."""
    if monitor is None:
        return True
    monitor.phase_start("Building", None, STEPS)
    monitor.phase_start("Tactics", "Building", 2)
    goes_on = monitor.step_complete("Tactics", 0)
    monitor.phase_finish("Tactics")
    for step in range(STEPS):
        goes_on = goes_on and monitor.step_complete("Building", step)
    monitor.phase_finish("Building")
    return bool(goes_on)
