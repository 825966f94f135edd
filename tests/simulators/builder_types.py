"""Enumerations of the builder simulator, with the members that each TensorRT has."""

from __future__ import annotations

import enum
from typing import Any

Version = tuple[int, int, int, int]


class _Member(enum.Enum):
    """As pybind11's: not a number, but `int()` gives one."""

    def __int__(self) -> int:
        return int(self.value)


def _enumeration(name: str, members: list[str]) -> Any:
    make: Any = _Member
    return make(name, {member: number for number, member in enumerate(members)})


_COMMON_FLAGS = ["DEBUG", "GPU_FALLBACK", "REFIT", "DISABLE_TIMING_CACHE", "TF32", "SPARSE_WEIGHTS", "DIRECT_IO"]
_LATER_FLAGS = ["VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME"]  # from 8.6
_TEN_FLAGS = ["STRIP_PLAN", "REFIT_IDENTICAL", "WEIGHT_STREAMING"]
_UNTYPED_FLAGS = ["FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS", "PREFER_PRECISION_CONSTRAINTS"]  # until 10


class Enumerations:
    """What a module of a version has. TensorRT 11 has no flags of precisions, and no explicit batch; both take none of 8.5."""

    def __init__(self, version: Version, *, rtx: bool) -> None:
        major, minor = version[:2]
        flags = [*_COMMON_FLAGS]
        flags += _LATER_FLAGS if rtx or (major, minor) >= (8, 6) else []
        flags += _TEN_FLAGS if rtx or major >= 10 else []
        flags += _UNTYPED_FLAGS if not rtx and major < 11 else []
        self.builder_flag = _enumeration("BuilderFlag", flags)
        self.network_flag = _network_flags(version, rtx=rtx)
        levels = ["NONE", "AMPERE_PLUS"] + (["SAME_COMPUTE_CAPABILITY"] if rtx or (major, minor) >= (10, 9) else [])
        self.hardware_level = _enumeration("HardwareCompatibilityLevel", levels)
        pools = ["WORKSPACE", "DLA_MANAGED_SRAM", "DLA_LOCAL_DRAM", "DLA_GLOBAL_DRAM", "TACTIC_DRAM"]
        self.pool = _enumeration("MemoryPoolType", pools)
        capabilities = ["NONE", "CURRENT", "SM75", "SM80", "SM86", "SM89", "SM120", "SM121"]
        self.capability = _enumeration("ComputeCapability", capabilities)


def _network_flags(version: Version, *, rtx: bool) -> Any:
    make: Any = _Member
    members = {"STRONGLY_TYPED": 1} if rtx or version[0] >= 11 else {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}
    return make("NetworkDefinitionCreationFlag", members)


class DeviceType(_Member):
    GPU = 0
    DLA = 1


class ProfilingVerbosity(_Member):
    LAYER_NAMES_ONLY = 0
    DETAILED = 1
    NONE = 2


class LayerInformationFormat(_Member):
    ONELINE = 0
    JSON = 1


class IProgressMonitor:
    """To be derived from."""


class Strict:
    """Takes the attributes that its class names, in their kinds, as pybind11's classes do: a wrong name or kind raises."""

    kinds: dict[str, tuple[type, ...]]

    def __init__(self, kinds: dict[str, tuple[type, ...]], values: dict[str, Any]) -> None:
        object.__setattr__(self, "kinds", kinds)
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.kinds:
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
        takes(name, value, *self.kinds[name])
        object.__setattr__(self, name, value)


def takes(what: str, value: Any, *kinds: type) -> None:
    """Raise pybind11's `TypeError` unless the value is of one of the kinds."""
    if not isinstance(value, kinds):
        raise TypeError(f"{what}: incompatible function arguments: {value!r}")
