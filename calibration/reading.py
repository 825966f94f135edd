"""Read a bundle's graph for changing it, its large tensors left in their file until they are asked for."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from edgevqa.runtime.errors import BundleError


def load_graph(path: Path) -> ir.Model:
    """The graph in `path`, a path that the bundle gave out; tensors are mapped from the weights file beside it.

    onnx_ir refuses a weights file with several hard links, which a bundle has while it is being extended. What that
    check is for is done here: raises `BundleError` for tensors that lie in any other folder.
    """
    model = ir.load(path)
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = _unchecked(value.const_value, path)
    return model


def _unchecked(tensor: ir.ExternalTensor, graph: Path) -> ir.ExternalTensor:
    """The same tensor by absolute path, which onnx_ir opens without its check."""
    name = str(tensor.location)
    if Path(name).name != name:
        raise BundleError(f"{graph} has weights in '{name}', outside its own folder. Export the bundle again.")
    return ir.ExternalTensor(
        str((graph.parent / name).resolve()),
        tensor.offset,
        tensor.length,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=tensor.name or "",
        base_dir="",
    )
