"""Enumerations and base classes of the TensorRT simulator."""

from __future__ import annotations

import enum


class DataType(enum.Enum):
    FLOAT = "tensor(float)"
    HALF = "tensor(float16)"
    BF16 = "tensor(bfloat16)"
    INT64 = "tensor(int64)"
    INT32 = "tensor(int32)"
    BOOL = "tensor(bool)"


NUMPY: dict[DataType, str] = {
    DataType.FLOAT: "float32",
    DataType.HALF: "float16",
    DataType.INT64: "int64",
    DataType.INT32: "int32",
    DataType.BOOL: "bool",
}


class TensorIOMode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class TensorLocation(enum.Enum):
    DEVICE = 0
    HOST = 1


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


class CudaGraphStrategy(enum.Enum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class Severity(enum.IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2


class ILogger:
    Severity = Severity

    def log(self, severity: int, msg: str) -> None:
        raise NotImplementedError


class IOutputAllocator:
    pass
