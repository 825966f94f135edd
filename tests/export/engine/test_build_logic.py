"""What a build decides before TensorRT is asked: options, profiles, versions, memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgevqa.export.engine.build import choose_buildable
from edgevqa.export.engine.estimate import check_budget, estimate_bytes, twice_text
from edgevqa.export.engine.flavours import check_version
from edgevqa.export.engine.network import advice, parser_message
from edgevqa.export.engine.options import BuildOptions, parse_axis, parse_size
from edgevqa.export.engine.profiles import axis_ranges, check_axes, graph_profiles
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.engines import Profile
from edgevqa.runtime.errors import CheckFailed, InputError
from edgevqa.runtime.manifest import TensorSpec
from edgevqa.runtime.plans import parse_version
from edgevqa.runtime.targets import target

LARGE_BUILDS = Path(__file__).parents[3] / "benchmarks" / "results" / "engine_builds_large.json"


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


def planned(bundle: Bundle, **changes: Any) -> dict[str, list[Profile]]:
    graphs = bundle.variant("fp32").graphs
    ranges = axis_ranges(bundle.manifest, graphs, options(**changes))
    return {name: graph_profiles(name, graph, ranges) for name, graph in graphs.items()}


def test_memory_is_estimated_before_the_start(bundle: Bundle) -> None:
    graphs, profiles = bundle.variant("fp32").graphs, planned(bundle, batch=(8,))
    name, needed = check_budget(graphs, "fp32", profiles, None)
    assert name == max(graphs, key=lambda each: graphs[each].parameters)
    assert needed == estimate_bytes(graphs[name], "fp32") > estimate_bytes(graphs[name], "s8-fp16")
    with pytest.raises(CheckFailed, match=rf"'{name}' takes about .* --memory-budget is 100 MB\. Build the int8"):
        check_budget(graphs, "fp32", profiles, 100_000_000)


def test_a_decoder_for_single_tokens_and_batches_takes_more(bundle: Bundle) -> None:
    """Its weights are laid out for both. The estimates are above what the recorded builds took, by at most 40 %."""
    large = json.loads(LARGE_BUILDS.read_text())
    decoder = msgspec.structs.replace(bundle.variant("fp32").graphs["language_decoder"], parameters=148_440_346)
    both, many = planned(bundle)["language_decoder"], planned(bundle, batch=(8,))["language_decoder"]
    assert (len(both), len(many)) == (2, 1)
    for row in large["rows"]:
        took = row["graphs"]["language_decoder"]["peak_memory_mb"] * 1e6
        numerics = {"int8-s8-fp16": "s8-fp16"}.get(row["variant"], row["variant"])
        assert took <= estimate_bytes(decoder, numerics, both) <= 1.4 * took
        assert estimate_bytes(decoder, numerics, many) < 0.85 * estimate_bytes(decoder, numerics, both)
        size = int(row["graphs"]["language_decoder"]["size_mb"] * 1e6)
        assert "the engine is 1." in (twice_text(decoder, numerics, both, size) or "")
        assert twice_text(decoder, numerics, many, size) is None
        assert twice_text(decoder, numerics, both, size // 2) is None
    with pytest.raises(CheckFailed, match=r"Take one batch size above 1 \(--batch 4: 1 to 4 rows\), build the int8"):
        check_budget({"language_decoder": decoder}, "fp32", {"language_decoder": both}, 2_000_000_000)


def test_parser_errors_name_graph_layer_and_fix() -> None:
    said = "Assertion failed: Non-zero zero point is not supported."
    message = parser_message(
        "vision_trunk", "rtx", [("vision.layers.0.mlp.fc1", "QuantizeLinear", said), ("", "", "x")]
    )
    assert "graph 'vision_trunk', layer 'vision.layers.0.mlp.fc1' (QuantizeLinear)" in message
    assert "edgevqa quantize BUNDLE --precision int8 --target rtx" in message
    assert "1 more" in message
    assert "Raise --workspace" in advice("could not find tactic: insufficient workspace", "rtx")


def test_a_range_of_an_axis_that_no_graph_has_is_refused(bundle: Bundle) -> None:
    graphs = bundle.variant("fp32").graphs
    check_axes({"batch": (1, 2, 3)}, graphs)
    with pytest.raises(InputError, match=r"--axis bacth: no graph has that axis. The axes are batch, capacity"):
        check_axes({"bacth": (1, 2, 3)}, graphs)
