"""A graph as TensorRT's network, with errors that name our graph, our layer and the fix; and its optimization profiles."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from edgevqa.export.engine.flavours import Toolkit, network_flags
from edgevqa.export.engine.protocol import Job
from edgevqa.runtime.engines import Profile, ShapeRange
from edgevqa.runtime.errors import CheckFailed, EdgeVQAError
from edgevqa.runtime.manifest import TensorSpec

# What parsers and builders say, and what helps. The first that fits is told.
_FIXES = (
    ("non-zero zero point", "Quantise for the target: edgevqa quantize BUNDLE --precision int8 --target {target}"),
    ("uint8", "Quantise for the target: edgevqa quantize BUNDLE --precision int8 --target {target}"),
    (
        "int32 but must have type",
        "Leave biases unquantised: edgevqa quantize BUNDLE --precision int8 --target {target}",
    ),
    ("opset", "Export again for the target: edgevqa export SOURCE --target {target} -o BUNDLE"),
    ("attention", "Export again: our own graphs write attention as MatMul, Softmax, MatMul."),
    (
        "fp32 gemm",
        "Name compute capabilities of 8.0 and up alone (--compute-capability 8.0), or build --precision fp16.",
    ),
    ("fp8", "Name compute capabilities of 8.9 and up alone (--compute-capability 8.9), or build --precision int8."),
    ("dedicated kernel", "Build --precision fp16: FP32 attention has no kernel here."),
    (
        "compute capability",
        "Name compute capabilities of 8.0 and up (--compute-capability 8.0), or build --precision fp16.",
    ),
    ("unsupported", "Export again for the target: edgevqa export SOURCE --target {target} -o BUNDLE"),
    (
        "out of memory",
        "Raise --workspace, or build a smaller variant (--precision int8), or smaller batches (--batch 1).",
    ),
    ("workspace", "Raise --workspace."),
)
_ARITHMETIC = ("MATRIX_MULTIPLY", "CONVOLUTION", "NORMALIZATION", "SOFTMAX", "ATTENTION")


def parse_network(toolkit: Toolkit, builder: Any, logger: Any, onnx: Path, graph: str, target: str) -> tuple[Any, Any]:
    """The strongly typed network of an ONNX file, and the parser, which must live as long (it owns the weights).

    Raises `CheckFailed` for what the parser refuses.
    """
    network = builder.create_network(network_flags(toolkit.module))
    parser = toolkit.module.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx)):
        errors = [parser.get_error(number) for number in range(parser.num_errors)]
        raise CheckFailed(parser_message(graph, target, [_told(error) for error in errors]))
    return network, parser


def parser_message(graph: str, target: str, errors: list[tuple[str, str, str]]) -> str:
    """The message for errors of (layer, operator, description)."""
    layer, operator, said = errors[0] if errors else ("", "", "the parser gave no reason")
    place = f", layer '{layer}'" if layer else ""
    kind = f" ({operator})" if operator else ""
    more = f" {len(errors) - 1} more." if len(errors) > 1 else ""
    return f"TensorRT cannot read graph '{graph}'{place}{kind}: {_short(said)}.{more} {advice(said, target)}"


def advice(said: str, target: str) -> str:
    """What helps against an error."""
    lowered = said.lower()
    for pattern, fix in _FIXES:
        if pattern in lowered:
            return fix.format(target=target)
    return "Report it with 'edgevqa inspect --json' of the bundle, if an exported bundle gives it."


def tensors(network: Any) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Inputs and outputs as the engine will have them; dynamic axes are called by their names where they have some."""
    inputs = [_spec(network.get_input(number)) for number in range(network.num_inputs)]
    return inputs, [_spec(network.get_output(number)) for number in range(network.num_outputs)]


def high_layers(toolkit: Toolkit, network: Any) -> tuple[list[str], dict[str, int]]:
    """Layers that compute in FP32: the names of the arithmetic ones, and how many there are of each type."""
    names: list[str] = []
    types: Counter[str] = Counter()
    for number in range(network.num_layers):
        layer = network.get_layer(number)
        if layer.num_outputs == 0 or layer.get_output(0).dtype != toolkit.module.DataType.FLOAT:
            continue
        kind = layer.type.name
        if kind in ("CONSTANT", "CAST", "SHAPE", "SHUFFLE"):
            continue
        types[kind] += 1
        if kind in _ARITHMETIC:
            names.append(layer.name)
    return names, dict(sorted(types.items()))


def _spec(tensor: Any) -> TensorSpec:
    shape = [
        size if size >= 0 else (tensor.get_dimension_name(axis) or f"axis_{axis}")
        for axis, size in enumerate(tuple(tensor.shape))
    ]
    kind = str(tensor.dtype.name)
    return TensorSpec(name=tensor.name, dtype=_DTYPES.get(kind, kind.lower()), shape=shape)


_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT64": "int64",
    "INT32": "int32",
    "INT8": "int8",
    "UINT8": "uint8",
    "BOOL": "bool",
    "FP8": "float8_e4m3fn",
}


def _told(error: Any) -> tuple[str, str, str]:
    return str(error.node_name()), str(error.node_operator()), str(error.desc())


def _short(text: str) -> str:
    return " ".join(text.split())[:300].rstrip(".")


def add_profiles(builder: Any, config: Any, job: Job) -> list[Profile]:
    """Add the job's profiles, and give those that TensorRT then has.

    Raises `CheckFailed` where it refuses one, and `EdgeVQAError` where it has others than the job: the engine would refuse
    shapes that its record promises.
    """
    has: list[Profile] = []
    for number, profile in enumerate(job.profiles):
        made = builder.create_optimization_profile()
        for name, sides in profile.items():
            made.set_shape(name, tuple(sides.min), tuple(sides.opt), tuple(sides.max))
        if config.add_optimization_profile(made) < 0:
            raise CheckFailed(
                f"TensorRT takes no profile {number} of graph '{job.graph}': {_text(profile)}. Expected sizes with "
                "min <= opt <= max: look at --batch and --axis."
            )
        has.append({name: _read(made, name) for name in profile})
    count = int(config.num_optimization_profiles)
    if count != len(job.profiles) or has != job.profiles:
        raise EdgeVQAError(
            f"TensorRT has {count} profiles of graph '{job.graph}', not the {len(job.profiles)} that were given: "
            f"{'; '.join(map(_text, has))}. Report it with the command and TensorRT's version."
        )
    return has


def _read(made: Any, name: str) -> ShapeRange:
    least, usual, most = (list(map(int, side)) for side in made.get_shape(name))
    return ShapeRange(min=least, opt=usual, max=most)


def _text(profile: Profile) -> str:
    return ", ".join(f"{name} {sides.min}..{sides.opt}..{sides.max}" for name, sides in profile.items())
