"""Write graphs whose large tensors lie once in one external-data file, whichever graphs share them.

Source of the layout: ONNX external data (`location`, `offset`, `length`), aligned so that files can be mapped.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from types import TracebackType

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

ALIGNMENT = 4096  # a page, so that a tensor can be mapped on its own
INLINE_BYTES = 1024  # scalars, shapes and small vectors stay in the graph file


class SharedWeights:
    """An external-data file that grows as graphs are written; equal tensors are stored once. A context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offsets: dict[bytes, int] = {}
        self._file = path.open("wb")

    def __enter__(self) -> SharedWeights:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write_graph(self, model: ir.Model, path: Path) -> None:
        """Save `model` as `path`, in the weights' folder, with its large tensors moved to the weights."""
        for value in model.graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and tensor.nbytes > INLINE_BYTES:
                value.const_value = self._store(tensor)
        self._file.flush()  # so that the graph can be loaded while others are still to come
        ir.save(model, path)

    def _store(self, tensor: ir.TensorProtocol) -> ir.ExternalTensor:
        data = _bytes_of(tensor)
        key = hashlib.sha256(data).digest()
        if key not in self._offsets:
            self._file.write(b"\0" * (-self._file.tell() % ALIGNMENT))
            self._offsets[key] = self._file.tell()
            self._file.write(data)
        return ir.ExternalTensor(
            self.path.name,
            self._offsets[key],
            len(data),
            tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=tensor.name or "",
            base_dir=self.path.parent,
        )


def _bytes_of(tensor: ir.TensorProtocol) -> bytes | memoryview:
    """The tensor as it is written; without a copy where numpy holds it so already."""
    if tensor.dtype.bitwidth < 8 or sys.byteorder != "little":
        return tensor.tobytes()
    found: NDArray[np.uint8] = np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8)
    return found.data
