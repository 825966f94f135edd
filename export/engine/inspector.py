"""What a finished engine says of itself, where a GPU can load it: the layers that give out FP32.

TensorRT's inspector tells a JSON object with "Layers": objects with "Name", "LayerType", "Inputs" and "Outputs" (each with a
"Format/Datatype" such as "Row major linear FP32") where the engine was built with detailed verbosity, else names alone. Types
are told for shapes that are known, so a context with shapes is set where one can be made.
"""

from __future__ import annotations

import contextlib
import re
from typing import Any

import msgspec

from edgevqa.export.engine.protocol import Inspected, Job
from edgevqa.runtime.engines import Profile

_TYPE_KEYS = ("Format/Datatype", "Datatype", "DataType", "Format")
_FP32 = re.compile(r"\b(fp32|float|float32)\b", re.IGNORECASE)
_KNOWN = re.compile(
    r"\b(fp\d+|float\w*|half|bf16|bfloat\w*|u?int\d+|bool|e\dm\d\w*)\b", re.IGNORECASE
)  # and not "N/A due to dynamic shapes"
_MOVING = {"cast", "constant", "identity", "noop", "reformat", "shape", "shuffle", "signal", "wait"}  # none computes


def inspect_plan(trt: Any, logger: Any, plan: Any, job: Job) -> Inspected:
    """Ask the engine, where it can be loaded here: TensorRT-RTX also builds for GPUs that are not.

    Whatever TensorRT refuses is at most a warning: the engine is built.
    """
    try:
        runtime = trt.Runtime(logger)
    except TypeError:  # what its Python makes of a runtime that could not be made
        return Inspected()
    if job.options.version_compatible:
        runtime.engine_host_code_allowed = True  # its program was built a moment ago
    if job.options.dla_core is not None:
        runtime.DLA_core = job.options.dla_core
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        return _not_loaded(logger, job)
    inspector = engine.create_engine_inspector()
    context = _context(trt, engine, job.profiles[0] if job.profiles else {})
    if context is not None:
        inspector.execution_context = context
    try:
        text = str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    except (RuntimeError, UnicodeError) as error:
        return _unread(f"nothing can be read ({error})")
    finally:
        del inspector, context, engine, runtime  # in the order in which they need each other
    return read_layers(text)


def read_layers(text: str) -> Inspected:
    """The layers that give out FP32, of what the inspector told. Of unknown shapes of it, only that is said."""
    try:
        told = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        return _unread(f"nothing is JSON ({error})")
    layers = told.get("Layers") if isinstance(told, dict) else None
    if not isinstance(layers, list) or not layers:
        return _unread("nothing is a list of layers")
    detailed = [layer for layer in layers if isinstance(layer, dict) and _kind(layer) not in _MOVING]
    if not any(isinstance(layer, dict) for layer in layers):
        return _unread("there are names alone")
    types = {str(layer.get("Name", "")): _types(layer) for layer in detailed if layer.get("Outputs")}
    unknown = sum(not any(map(_KNOWN.search, each)) for each in types.values())
    if types and unknown == len(types):
        return _unread("nothing is a type")
    warning = f"TensorRT's inspector tells no types of {unknown} of {len(types)} layers" if unknown else None
    return Inspected(layers=[name for name, each in types.items() if any(map(_FP32.search, each))], warning=warning)


def _unread(why: str) -> Inspected:
    return Inspected(warning=f"the engine's own FP32 layers are not known: of what TensorRT's inspector told, {why}")


def _not_loaded(logger: Any, job: Job) -> Inspected:
    if job.options.row.flavour == "tensorrt-rtx":
        return Inspected()
    said = logger.errors[-1].rstrip(".") if logger.errors else "it gave no reason"
    return Inspected(warning=f"TensorRT built the engine but cannot load it here: {said}")


def _context(trt: Any, engine: Any, profile: Profile) -> Any:
    """A context with the first profile's usual shapes and no memory of its own; None where there can be none."""
    with contextlib.suppress(RuntimeError, TypeError):
        context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is not None and all(
            context.set_input_shape(name, tuple(each.opt)) for name, each in profile.items()
        ):
            return context
    return None


def _kind(layer: dict[str, Any]) -> str:
    return str(layer.get("LayerType", "")).lower()


def _types(layer: dict[str, Any]) -> list[str]:
    """What is told of the types of a layer's outputs."""
    outputs = layer["Outputs"] if isinstance(layer["Outputs"], list) else [layer["Outputs"]]
    found: list[str] = []
    for output in outputs:
        told = output if isinstance(output, dict) else {"Format": output}
        found.append(next((str(told[key]) for key in _TYPE_KEYS if key in told), ""))
    return found
