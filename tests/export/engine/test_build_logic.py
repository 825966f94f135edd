"""What a build decides before TensorRT is asked: options, profiles, versions, variants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgevqa.export.engine.choice import choose_buildable
from edgevqa.export.engine.flavours import check_version
from edgevqa.export.engine.network import advice, parser_message
from edgevqa.export.engine.options import BuildOptions, parse_axis, parse_size
from edgevqa.export.engine.profiles import axis_ranges, graph_profiles
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.errors import InputError
from edgevqa.runtime.manifest import TensorSpec
from edgevqa.runtime.plans import parse_version
from edgevqa.runtime.targets import target


@pytest.fixture(scope="module")
def bundle(reference_bundle: Path) -> Bundle:
    return Bundle.open(reference_bundle)


def options(**changes: Any) -> BuildOptions:
    given: dict[str, Any] = {"target": "rtx", **changes}
    return BuildOptions(**given)


def test_profiles_follow_the_axes(bundle: Bundle) -> None:
    graphs = bundle.variant("fp32").graphs
    one, many = axis_ranges(bundle.manifest, graphs, options(batch=(1, 4, 8), max_question=20))
    assert (one["batch"], one["image"], many["batch"], many["image"]) == ((1, 1, 1), (1, 1, 1), (1, 4, 8), (1, 4, 8))
    assert one["words"] == (1, 12, 20)
    assert one["keys"] == (66, 77, 85), "65 image tokens and the words"
    slots = bundle.manifest.generation.max_new_tokens if bundle.manifest.generation else 0
    assert one["capacity"] == (slots, slots, slots), "the cache is written in place: its size is fixed"


def test_each_graph_gets_its_shapes(bundle: Bundle) -> None:
    graphs = bundle.variant("fp32").graphs
    ranges = axis_ranges(bundle.manifest, graphs, options())
    first, second = graph_profiles("vision_fusion", graphs["vision_fusion"], ranges)
    assert first["trunk_states"].min == first["trunk_states"].max == [1, 65, 160]
    assert (second["question_states"].min, second["question_states"].max) == ([1, 1, 128], [8, 30, 128])
    assert set(first) == {"trunk_states", "question_states", "attention_mask"}


@pytest.mark.parametrize(("batch", "count"), [((1,), 1), ((8,), 1), ((1, 8), 2), ((1, 4, 8, 32), 2)])
def test_one_row_has_its_own_profile(bundle: Bundle, batch: tuple[int, ...], count: int) -> None:
    graphs = bundle.variant("fp32").graphs
    ranges = axis_ranges(bundle.manifest, graphs, options(batch=batch))
    assert len(ranges) == count
    assert ranges[-1]["batch"][2] == max(batch)


def test_graphs_without_moving_axes_get_one_profile(bundle: Bundle) -> None:
    spec = bundle.variant("fp32").graphs["projector"]
    fixed = msgspec.structs.replace(spec, inputs=[TensorSpec(name="x", dtype="float32", shape=[1, 3])])
    ranges = axis_ranges(bundle.manifest, bundle.variant("fp32").graphs, options())
    assert len(graph_profiles("projector", fixed, ranges)) == 1


def test_an_unknown_axis_is_asked_for(bundle: Bundle) -> None:
    spec = bundle.variant("fp32").graphs["projector"]
    odd = msgspec.structs.replace(spec, inputs=[TensorSpec(name="x", dtype="float32", shape=["frames", 3])])
    ranges = axis_ranges(bundle.manifest, {"projector": odd}, options())
    with pytest.raises(InputError, match="--axis frames=LEAST:USUAL:MOST"):
        graph_profiles("projector", odd, ranges)
    ranges = axis_ranges(bundle.manifest, {"projector": odd}, options(axes={"frames": (1, 2, 4)}))
    assert graph_profiles("projector", odd, ranges)[0]["x"].opt == [2, 3]


def test_a_question_longer_than_the_model_takes_is_refused(bundle: Bundle) -> None:
    with pytest.raises(InputError, match="at most 30 tokens"):
        axis_ranges(bundle.manifest, bundle.variant("fp32").graphs, options(max_question=31))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": "cpu"}, "no engine is needed"),
        ({"target": "jetson-orin-legacy"}, "run the trtexec lines"),
        ({"batch": ()}, "--batch"),
        ({"batch": (0, 1)}, "sizes of 1 or more"),
        ({"optimization_level": 6}, "0 .* to 5"),
        ({"axes": {"frames": (4, 2, 8)}}, "least <= usual"),
        ({"compute_capabilities": ("sm86",)}, "a number such as 8.9"),
        ({"target": "jetson-orin-jp6", "compute_capabilities": ("8.7",)}, "for target 'rtx'"),
        ({"dla_core": 0}, "no desktop GPU has one"),
        ({"target": "jetson-orin-jp7", "dla_core": 0}, "drives no DLA"),
    ],
)
def test_wrong_options_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        options(**changes)


def test_sizes_and_axes_are_read() -> None:
    assert parse_size("2GB", "--workspace") == 2_000_000_000
    assert parse_size("1.5 GiB", "--workspace") == 1_610_612_736
    assert parse_axis("frames=1:4:8") == ("frames", (1, 4, 8))
    for wrong in ("2 cats", "GB", "-1GB", "0"):
        with pytest.raises(InputError, match="--workspace"):
            parse_size(wrong, "--workspace")
    with pytest.raises(InputError, match="--axis frames=1:4"):
        parse_axis("frames=1:4")


@pytest.mark.parametrize(
    ("name", "version", "fits"),
    [
        ("jetson-orin-jp6", "10.3.0.30", True),
        ("jetson-orin-jp6", "10.13.3.9", False),
        ("jetson-thor-jp7", "10.16.2.10", True),
        ("server-trt10", "10.9.0.34", True),
        ("server-trt10", "11.4.0.1", False),
        ("server-trt11", "11.4.0.1", True),
        ("jetson-orin-jp7", "10.1.6.2", False),
    ],
)
def test_only_the_targets_own_tensorrt_builds_for_it(name: str, version: str, fits: bool) -> None:
    if fits:
        check_version(target(name), parse_version(version))
    else:
        with pytest.raises(InputError, match=f"Here is TensorRT {version}"):
            check_version(target(name), parse_version(version))


def test_a_variant_of_other_machines_names_the_one_that_is_there(bundle: Bundle) -> None:
    """Making it again would change nothing."""
    spec = bundle.variant("fp32")
    variants = {
        **bundle.manifest.variants,
        "int8-u8-fp32": msgspec.structs.replace(spec, precision="int8", numerics="u8-fp32"),
        "int8-s8-fp16": msgspec.structs.replace(spec, precision="int8", numerics="s8-fp16"),
    }
    both = Bundle(bundle.root, msgspec.structs.replace(bundle.manifest, variants=variants), check=False)
    with pytest.raises(InputError, match=r"does not take\. It takes int8-s8-fp16, .*: --precision int8-s8-fp16$"):
        choose_buildable(both, options(precision="int8-u8-fp32"))
    assert choose_buildable(both, options(precision="int8")) == "int8-s8-fp16"


def test_a_missing_variant_names_the_command_that_makes_it(bundle: Bundle) -> None:
    with pytest.raises(InputError, match=r"edgevqa quantize .* --precision int8 --target jetson-orin-jp6"):
        choose_buildable(bundle, options(target="jetson-orin-jp6", precision="int8"))
    with pytest.raises(InputError, match="Orin's GPU"):
        choose_buildable(bundle, options(target="jetson-orin-jp6", precision="fp8"))
    assert choose_buildable(bundle, options()) == "fp32"


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("int8-u8-fp32-decoder-w4", "--precision int8 --target rtx --decoder weight-int4"),
        (
            "mixed-u8-fp32-encoder-w8b64",
            "--precision mixed --target rtx --encoder weight-int8 --block-size 64 --data DATA",
        ),
        ("int8-u8-fp32", "--precision int8 --target rtx"),
    ],
)
def test_the_command_makes_the_variant_that_was_asked_for(bundle: Bundle, name: str, command: str, there: bool) -> None:
    """Where the bundle has it in numerics of other machines, and where it has none of that name."""
    foreign = msgspec.structs.replace(bundle.variant("fp32"), precision="int8", numerics="u8-fp32")
    manifest = msgspec.structs.replace(bundle.manifest, variants={name: foreign} if there else bundle.manifest.variants)
    with pytest.raises(InputError) as caught:
        choose_buildable(Bundle(bundle.root, manifest, check=False), options(precision=name))
    calibrated = f"edgevqa calibrate {bundle.root} --data DATA, then "
    assert str(caught.value).endswith(f"workstation: {calibrated}edgevqa quantize {bundle.root} {command}")


def test_parser_errors_name_graph_layer_and_fix() -> None:
    said = "Assertion failed: Non-zero zero point is not supported."
    message = parser_message(
        "vision_trunk", "rtx", [("vision.layers.0.mlp.fc1", "QuantizeLinear", said), ("", "", "x")]
    )
    assert "graph 'vision_trunk', layer 'vision.layers.0.mlp.fc1' (QuantizeLinear)" in message
    assert "edgevqa quantize BUNDLE --precision int8 --target rtx" in message
    assert "1 more" in message
    assert "Raise --workspace" in advice("could not find tactic: insufficient workspace", "rtx")
