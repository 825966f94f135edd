"""What is read of TensorRT's engine inspector: JSON in the shape that NVIDIA's guide shows, and everything else."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgevqa.cli.engine_tables import print_engines
from edgevqa.export.engine.build import build
from edgevqa.export.engine.inspector import read_layers
from edgevqa.export.engine.options import BuildOptions
from edgevqa.runtime.engines import decode_record, encode_record

CONVOLUTION = {
    "Name": "res4_0_branch2a_1 + res4_0_branch2a_bn_1",
    "LayerType": "CaskConvolution",
    "Inputs": [
        {
            "Name": "res3_3_branch2c_bn_3",
            "Dimensions": [16, 512, 28, 28],
            "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format.",
        }
    ],
    "Outputs": [
        {
            "Name": "res4_0_branch2a_bn_2",
            "Dimensions": [16, 256, 28, 28],
            "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format.",
        }
    ],
    "ParameterType": "Convolution",
    "Weights": {"Type": "Int8", "Count": 131072},
    "Bias": {"Type": "Float", "Count": 256},
    "TacticValue": "0x11bde0e1d9f2f35d",
}
"""As in the developer guide: the FP32 bias makes it no FP32 layer."""


def layer(name: str, *told: str, kind: str = "kgen", key: str = "Format/Datatype") -> dict[str, Any]:
    return {"Name": name, "LayerType": kind, "Inputs": [], "Outputs": [{"Name": name, key: each} for each in told]}


def text(*layers: Any) -> str:
    return json.dumps({"Layers": list(layers), "Bindings": ["x", "y"]})


@pytest.mark.parametrize(
    "told",
    [
        "Row major linear FP32",
        "Row major linear FP32 format",
        "Channel major FP32 format where channel % 4 == 0",
        "Float",
    ],
)
def test_layers_that_give_out_fp32_are_named(told: str) -> None:
    found = read_layers(text(CONVOLUTION, layer("norm", told), layer("fc", "Row major linear FP16 format")))
    assert (found.layers, found.warning) == (["norm"], None)
    assert read_layers(text(layer("two", "Row major linear FP16", told))).layers == ["two"]
    assert read_layers(text(layer("typed", told, key="Datatype"))).layers == ["typed"]


@pytest.mark.parametrize(
    "told", ["Half", "BFloat16", "BF16", "Int8", "FP8", "Int64", "Bool", "Row major linear FP16 format"]
)
def test_no_other_type_is_taken_for_fp32(told: str) -> None:
    found = read_layers(text(layer("other", told)))
    assert (found.layers, found.warning) == ([], None)


@pytest.mark.parametrize("kind", ["Reformat", "NoOp", "Constant", "Shuffle", "Cast"])
def test_what_only_moves_values_is_left_out(kind: str) -> None:
    found = read_layers(text(CONVOLUTION, layer("copy", "Row major linear FP32", kind=kind)))
    assert (found.layers, found.warning) == ([], None)


def test_layers_without_outputs_are_no_failure() -> None:
    assert read_layers(text(CONVOLUTION, {"Name": "wait", "LayerType": "wait", "Outputs": []})).layers == []


def test_types_that_are_not_told_are_counted() -> None:
    unknown = layer("moving", "N/A due to dynamic shapes")
    found = read_layers(text(CONVOLUTION, layer("norm", "Float"), unknown))
    assert found.layers == ["norm"]
    assert found.warning == "TensorRT's inspector tells no types of 1 of 3 layers"
    assert read_layers(text(unknown)).layers is None, "not: no layer is FP32"


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ("", "JSON"),
        ("{Layers", "JSON"),
        ("[]", "a list of layers"),
        ('{"layers": 3}', "a list of layers"),
        ('{"Layers": [], "Bindings": []}', "a list of layers"),
        (text("node_of_conv1 + node_of_relu1", "fc"), "names alone"),
        (text({"Name": "x", "LayerType": "gemm", "Outputs": [{"Name": "y"}]}), "is a type"),
        (text({"Name": "x", "LayerType": "gemm", "Outputs": ["y"]}), "is a type"),
    ],
)
def test_unknown_shapes_of_it_are_a_warning(told: str, why: str) -> None:
    found = read_layers(told)
    assert found.layers is None
    assert why in (found.warning or "")


def test_inspect_prints_what_the_engines_told(
    install: Callable[..., Any], half_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A record without it, as those of an older edgevqa are, says nothing of it."""
    layers = [layer(f"norm{number}", "Float") for number in range(6)]
    install("tensorrt", (11, 4, 0, 1), layers=text(CONVOLUTION, *layers))
    record = build(half_bundle, BuildOptions(target="server-trt11", precision="fp16", batch=(1,))).record
    assert record.graphs["projector"].fp32_layers == [f"norm{number}" for number in range(6)]
    print_engines("x", record)
    said = " ".join(capsys.readouterr().out.split())
    shown = "norm0, norm1, norm2, norm3 and 2 more"
    assert f"projector: TensorRT's inspector finds FP32 given out by 6 of its layers: {shown}" in said
    none = {**record.graphs, "projector": msgspec.structs.replace(record.graphs["projector"], fp32_layers=[])}
    print_engines("x", msgspec.structs.replace(record, graphs=none))
    assert "projector: TensorRT's inspector finds FP32 given out by none of its layers" in capsys.readouterr().out
    old = encode_record(msgspec.structs.replace(record, graphs={"projector": none["projector"]}))
    lines = [line for line in old.decode().splitlines() if "fp32_layers" not in line]
    print_engines("x", decode_record("\n".join(lines).encode(), where="engine.json"))
    assert "inspector" not in capsys.readouterr().out


@pytest.mark.gpu
@pytest.mark.tensorrt
@pytest.mark.parametrize(
    ("name", "module"), [("rtx", "tensorrt_rtx"), ("server-trt10", "tensorrt"), ("server-trt11", "tensorrt")]
)
def test_a_real_engine_is_inspected(name: str, module: str, reference_bundle: Path, tmp_path: Path) -> None:
    """T5's norms are FP32 in the FP16 variant's network: the engine has them, too, fused or not."""
    from edgevqa.calibration import QuantizeOptions, quantize
    from edgevqa.export.engine.flavours import capability_member, load_toolkit
    from edgevqa.runtime.machine import read_machine
    from edgevqa.runtime.targets import target

    machine = read_machine()
    if not machine.gpus or importlib.util.find_spec(module) is None:
        pytest.skip(f"needs a GPU and {module}")
    if module == "tensorrt" and not importlib.import_module(module).__version__.startswith(target(name).tensorrt[0]):
        pytest.skip("this is another TensorRT")
    extra: dict[str, Any] = {}
    if name == "rtx":
        capability = str(machine.gpus[0].compute_capability)
        if capability_member(load_toolkit(target("rtx")), capability) is None:
            pytest.skip(f"TensorRT-RTX builds nothing for compute capability {capability}")
        extra["compute_capabilities"] = (capability,)
    path = Path(shutil.copytree(reference_bundle, tmp_path / "bundle"))
    quantize(path, QuantizeOptions(precision="fp16", targets=(name,)))
    record = build(path, BuildOptions(target=name, precision="fp16", batch=(1, 4), **extra)).record
    assert record.graphs["language_decoder"].fp32_layers
    assert all(engine.fp32_layers is not None for engine in record.graphs.values())
