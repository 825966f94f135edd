"""Weights of big checkpoints: they stay in their file, in the type that they have there, and are float32 to all who read.

A checkpoint of 7 B parameters in bfloat16 has 14 GB, as float32 28 GB. Eager PyTorch, the families' wrappers and the writer
of graphs see a float32 model all the same; each weight is converted when it is read, and forgotten after.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from edgevqa.runtime.errors import CheckpointError

STREAMED_FROM_BYTES = 1 << 30  # as float32; smaller models are simply loaded, which runs faster
BIG_FROM_BYTES = 8 << 30  # as float32; eager answers of bigger ones take minutes each
SMALL = 4096  # elements; what is no larger is simply loaded: graph passes may look at its values
_HALF = (torch.bfloat16, torch.float16)
_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
_KEPT = (torch.ops.aten.detach.default, torch.ops.aten.alias.default)


_internals: Any = torch._C  # pyright: ignore[reportPrivateUsage] (a subclass without functions of its own is made so)


class StreamedTensor(Tensor):
    """A float32 tensor whose values lie in `stored`, mapped from a file in half precision.

    Whatever is computed with it sees a float32 tensor that lives as long as that operation. Not for training.
    """

    stored: Tensor
    __torch_function__: Any = _internals._disabled_torch_function_impl  # results are plain tensors

    def __new__(cls, stored: Tensor) -> StreamedTensor:
        wrap: Any = torch.Tensor._make_wrapper_subclass  # pyright: ignore[reportPrivateUsage]
        made: StreamedTensor = wrap(cls, stored.shape, dtype=torch.float32, device=stored.device, requires_grad=False)
        made.stored = stored
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"StreamedTensor({tuple(self.shape)}, stored as {self.stored.dtype})"

    def floats(self) -> Tensor:
        """The values as a float32 tensor of their own."""
        return self.stored.to(torch.float32)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func in _KEPT:
            return cls(args[0].stored)
        if func is torch.ops.aten.embedding.default and isinstance(args[0], cls):  # rows alone, not the whole table
            return func(args[0].stored, *args[1:], **(kwargs or {})).to(torch.float32)
        return func(*_floats(args), **_floats(kwargs or {}))


def _floats(tree: Any) -> Any:
    return tree_map_only(StreamedTensor, StreamedTensor.floats, tree)


def streamed_state(folder: Path) -> dict[str, Tensor] | None:
    """The tensors of the folder's safetensors files, mapped: float32 to all who read, whatever they are stored as.

    None where the model is small, stored as float32 (transformers maps that by itself) or in files of another kind.
    """
    files = _files(folder)
    state: dict[str, Tensor] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                state.update({name: opened.get_tensor(name) for name in opened.keys()})  # noqa: SIM118
        except Exception as error:  # the binding's own exception type
            raise CheckpointError(f"{file} is not a whole safetensors file: {error}. Copy it again.") from error
    if sum(tensor.numel() * 4 for tensor in state.values() if tensor.dtype in _HALF) < max(STREAMED_FROM_BYTES, 1):
        return None
    return {name: _as_float32(tensor) for name, tensor in state.items()}


def _as_float32(tensor: Tensor) -> Tensor:
    if tensor.dtype not in _HALF:
        return tensor
    return StreamedTensor(tensor) if tensor.numel() > SMALL else tensor.to(torch.float32)


def load_buffers(module: nn.Module) -> None:
    """Load what was streamed of the module's buffers: tracing puts placeholders for parameters alone."""
    for child in module.modules():
        for name, value in child.named_buffers(recurse=False):
            if isinstance(value, StreamedTensor):
                setattr(child, name, value.floats())


def is_big(model: Any) -> bool:
    """Whether a model is streamed, and so big that one answer of the eager model has to do for a comparison."""
    parameters = model.parameters() if isinstance(model, nn.Module) else ()
    sizes = [parameter.numel() * 4 for parameter in parameters if isinstance(parameter, StreamedTensor)]
    return bool(sizes) and sum(sizes) >= BIG_FROM_BYTES


def _files(folder: Path) -> list[Path]:
    if (folder / "adapter_config.json").exists():
        return []  # transformers puts base model and adapter together
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    if not (folder / _INDEX).is_file():
        return []
    try:
        names = set(json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"].values())
        return [folder / str(name) for name in sorted(names)]
    except (ValueError, KeyError, AttributeError, TypeError, OSError) as error:
        raise CheckpointError(
            f"{folder / _INDEX} cannot be read ({error}); it says which file holds which weight."
        ) from error


@contextmanager
def placeholders(module: nn.Module) -> Iterator[Mapping[str, StreamedTensor]]:
    """Put float32 tensors without values in the place of the module's streamed parameters, to trace it by.

    Gives the streamed ones by all their names. The placeholders' memory is reserved and never touched, so it costs nothing.
    """
    parameters = module.named_parameters(remove_duplicate=False)
    found = {name: value for name, value in parameters if isinstance(value, StreamedTensor)}
    made = {id(value): _placeholder(value) for value in found.values()}  # one for all uses of a tied weight
    changed = [
        (child, name, value)
        for child in module.modules()
        for name, value in child.named_parameters(recurse=False, remove_duplicate=False)
        if id(value) in made
    ]
    try:
        for owner, name, value in changed:
            setattr(owner, name, made[id(value)])
        yield found
    finally:
        for owner, name, value in changed:
            setattr(owner, name, value)


def _placeholder(value: StreamedTensor) -> nn.Parameter:
    return nn.Parameter(torch.empty(value.shape, dtype=torch.float32), requires_grad=False)


def bind(graph: ir.Graph, streamed: Mapping[str, StreamedTensor]) -> None:
    """Give the initializers of a graph that was traced by placeholders their values, read when they are written."""
    for name, tensor in streamed.items():
        value = graph.initializers.get(name)
        if value is not None:
            value.const_value = _lazy(name, tensor)


def _lazy(name: str, tensor: StreamedTensor) -> ir.LazyTensor:
    def evaluate() -> ir.TensorProtocol:
        return ir.Tensor(tensor.floats().numpy(), name=name)

    return ir.LazyTensor(evaluate, dtype=ir.DataType.FLOAT, shape=ir.Shape(list(tensor.shape)), name=name)
