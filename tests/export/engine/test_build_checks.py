"""What a build refuses before it starts: GPUs, timing caches, axes, names; and what it takes by itself."""

from __future__ import annotations

import enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from edgevqa.export.engine import plan as planning
from edgevqa.export.engine.axes import check_axes
from edgevqa.export.engine.capabilities import built_for, check_gpu, check_network, check_products
from edgevqa.export.engine.choice import choose_buildable, preference
from edgevqa.export.engine.flavours import Toolkit, refuse_elsewhere, refuse_impossible
from edgevqa.export.engine.options import BuildOptions, parse_axes, parse_size
from edgevqa.export.engine.plan import make_plan
from edgevqa.export.engine.protocol import Job
from edgevqa.export.engine.timing import check_timing_cache, keep_timing_cache, open_timing_cache
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.errors import CheckFailed, InputError, UnavailableError
from edgevqa.runtime.manifest import Numerics
from edgevqa.runtime.targets import TARGETS, target

NEWEST = ("NONE", "CURRENT", "SM75", "SM80", "SM86", "SM89", "SM120", "SM121")


@pytest.fixture(scope="module")
def bundle(reference_bundle: Path) -> Bundle:
    return Bundle.open(reference_bundle)


def options(**changes: Any) -> BuildOptions:
    given: dict[str, Any] = {"target": "rtx", **changes}
    return BuildOptions(**given)


def toolkit(*names: str) -> Toolkit:
    """A TensorRT-RTX that knows these compute capabilities."""
    kinds = enum.Enum("ComputeCapability", list(names or NEWEST))  # type: ignore[misc]
    module = SimpleNamespace(ComputeCapability=kinds, BuilderFlag=SimpleNamespace(), Builder=SimpleNamespace())
    return Toolkit(module, (1, 7, 1, 116))


@pytest.mark.parametrize(
    ("numerics", "given", "built"),
    [
        ("fp16", (), ("8.0", "8.6", "8.9", "12.0")),
        ("fp8-fp16", (), ("8.9", "12.0")),
        ("fp8-fp16", ("12.1", "8.9"), ("12.1", "8.9")),
        ("fp16", ("8.6", "8.6"), ("8.6",)),
    ],
)
def test_fp8_is_built_for_the_gpus_that_have_it(
    numerics: Numerics, given: tuple[str, ...], built: tuple[str, ...]
) -> None:
    assert built_for(options(compute_capabilities=given), numerics, toolkit()) == built


def test_fp8_below_8_9_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"--compute-capability 8\.6: GPUs before .* 8\.9 have no FP8"):
        built_for(options(compute_capabilities=("12.0", "8.6")), "fp8-fp16", toolkit())
    check_gpu(options(target="server-trt10"), "fp8", "fp8-fp16", "8.9")
    check_gpu(options(target="server-trt10"), "int8", "s8-fp16", "8.0")
    with pytest.raises(InputError, match=r"'fp8' is FP8, and the GPU of this machine has compute capability 8\.0"):
        check_gpu(options(target="server-trt10"), "fp8", "fp8-fp16", "8.0")


def test_what_an_older_tensorrt_rtx_does_not_know_is_not_said_to_be_built() -> None:
    old = toolkit("NONE", "SM75", "SM80", "SM86")
    assert built_for(options(), "fp16", old) == ("8.0", "8.6")
    with pytest.raises(
        InputError, match=r"knows the compute capabilities 7\.5, 8\.0, 8\.6, and not all of 8\.9, 12\.0"
    ):
        built_for(options(), "fp8-fp16", old)
    with pytest.raises(InputError, match=r"not all of 8\.6, 12\.0"):
        built_for(options(compute_capabilities=("8.6", "12.0")), "fp16", old)


def test_the_others_are_built_for_the_gpu_at_hand() -> None:
    assert built_for(options(target="jetson-orin-jp6"), "fp16", toolkit()) == ()


def test_known_capabilities_are_told_in_order() -> None:
    with pytest.raises(InputError, match=r"8\.7: this TensorRT-RTX knows 7\.5, 8\.0, 8\.6, 8\.9, 12\.0, 12\.1\."):
        refuse_impossible(options(compute_capabilities=("8.7",)), toolkit())


def test_fp32_products_on_7_5_are_refused_before_the_start(bundle: Bundle) -> None:
    spec = bundle.variant("fp32")
    check_products(("8.0",), "fp32", spec)
    check_products(("7.5",), "fp16", msgspec.structs.replace(spec, numerics="fp16"))
    with pytest.raises(InputError, match=r"--compute-capability 7\.5: .* graph 'vision_trunk' .*--precision fp16"):
        check_products(("8.0", "7.5"), "fp32", spec)


def network(*layers: tuple[str, str, str]) -> Any:
    made = [
        SimpleNamespace(
            name=name, type=SimpleNamespace(name=kind), get_output=lambda _, dtype=dtype: SimpleNamespace(dtype=dtype)
        )
        for name, kind, dtype in layers
    ]
    return SimpleNamespace(num_layers=len(made), get_layer=made.__getitem__)


def test_a_kept_fp32_product_is_refused_by_graph_and_layer() -> None:
    float_norm = ("norm", "NORMALIZATION", "float")
    check_network(("7.5",), "g", network(float_norm, ("half", "MATRIX_MULTIPLY", "half")), "float")
    check_network(("8.0",), "g", network(("wo", "MATRIX_MULTIPLY", "float")), "float")
    with pytest.raises(CheckFailed, match=r"Graph 'g' keeps the FP32 product 'wo'.* 7\.5 takes none"):
        check_network(("7.5", "8.0"), "g", network(float_norm, ("wo", "MATRIX_MULTIPLY", "float")), "float")


class FakeConfig:
    """A builder's configuration that takes caches that begin as they should, of one GPU."""

    def __init__(self, *, tells: Any = None) -> None:
        self.cache: bytes | None = None
        self.tells = tells

    def create_timing_cache(self, data: bytes) -> bytes | None:
        if self.tells is not None and data and not data.startswith(b"cache"):
            self.tells.warnings.append("Failed to deserialize timing cache. Returning an empty timing cache.")
            return b"cache"
        return (data or b"cache") if not data or data.startswith(b"cache") else None

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if cache.endswith(b"of another GPU"):
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return SimpleNamespace(serialize=lambda: self.cache)


def timed_job(path: Path, *, given: bool) -> Job:
    made = options(target="server-trt10", timing_cache=str(path) if given else None)
    return Job(graph="g", onnx="", engine="", profiles=[], options=made, numerics="fp32", timing_cache=str(path))


def logger() -> Any:
    return SimpleNamespace(errors=[], warnings=[])


@pytest.mark.parametrize("content", [b"my letter", b"cache of another GPU"])
@pytest.mark.parametrize("tells", [False, True], ids=["gives none", "gives an empty one"])
def test_a_file_that_tensorrt_does_not_take_is_not_overwritten(tmp_path: Path, content: bytes, tells: bool) -> None:
    path, told = tmp_path / "letter.txt", logger()
    path.write_bytes(content)
    config = FakeConfig(tells=told if tells else None)
    with pytest.raises(InputError, match=r"letter\.txt: TensorRT does not take it.*Give another file"):
        open_timing_cache(config, timed_job(path, given=True), told)
    assert path.read_bytes() == content
    cache = open_timing_cache(config, timed_job(path, given=False), told)
    assert cache == b"cache", "in the cache directory it is begun anew"


@pytest.mark.parametrize("content", [None, b"", b"cache: times"])
def test_a_timing_cache_goes_on_or_is_begun(tmp_path: Path, content: bytes | None) -> None:
    path, config = tmp_path / "times" / "tc", FakeConfig()
    made = timed_job(path, given=True)
    path.parent.mkdir()
    if content is not None:
        path.write_bytes(content)
    check_timing_cache(path)
    cache = open_timing_cache(config, made, logger())
    assert config.cache == (content or b"cache")
    assert keep_timing_cache(cache, config, made) == []
    assert path.read_bytes() == (content or b"cache")
    assert [each.name for each in path.parent.iterdir()] == ["tc"]


def test_a_place_where_no_timing_cache_can_be_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="it is a folder; expected a file"):
        check_timing_cache(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot be written"):
        check_timing_cache(tmp_path / "file" / "tc")
    with pytest.raises(InputError, match="device"):
        check_timing_cache(Path("/dev/null"))
    check_timing_cache(tmp_path / "new" / "tc")
    assert [each.name for each in tmp_path.iterdir()] == ["file"], "it was only looked at"


def test_a_timing_cache_that_cannot_be_kept_costs_no_engine(tmp_path: Path) -> None:
    """The folder came to be after the check."""
    config, made = FakeConfig(), timed_job(tmp_path / "tc", given=True)
    cache = open_timing_cache(config, made, logger())
    (tmp_path / "tc").mkdir()
    assert "The timing cache" in keep_timing_cache(cache, config, made)[0]
    assert [each.name for each in tmp_path.iterdir()] == ["tc"]


def test_the_plan_checks_them_before_anything_is_built(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "load_toolkit", lambda row: toolkit())
    with pytest.raises(InputError, match="no FP32 matrix product"):
        make_plan(bundle, options(compute_capabilities=("7.5",)))
    with pytest.raises(InputError, match="--axis words: --max-question sets it"):
        make_plan(bundle, options(axes={"words": (1, 4, 800)}))
    with pytest.raises(InputError, match="it is a folder"):
        make_plan(bundle, options(target="server-trt10", timing_cache=tmp_path))
    variant = msgspec.structs.replace(bundle.variant("fp32"), precision="fp8", numerics="fp8-fp16")
    manifest = msgspec.structs.replace(bundle.manifest, variants={"fp8": variant})
    made = make_plan(Bundle(bundle.root, manifest, check=False), options())
    assert (made.variant, made.options.compute_capabilities) == ("fp8", ("8.9", "12.0"))


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("batch", "--batch"),
        ("image", "--batch"),
        ("words", "--max-question"),
        ("keys", "--max-question"),
        ("capacity", "--max-new-tokens"),
    ],
)
def test_an_axis_that_another_option_sets_is_refused(bundle: Bundle, name: str, option: str) -> None:
    graphs = bundle.variant("fp32").graphs
    with pytest.raises(InputError, match=rf"--axis {name}: {option} sets it"):
        check_axes(bundle.manifest, graphs, options(axes={name: (1, 2, 3)}))


def test_an_axis_that_no_graph_has_is_refused(bundle: Bundle) -> None:
    with pytest.raises(InputError, match=r"--axis bacth: no graph has that axis. The axes are batch, capacity"):
        check_axes(bundle.manifest, bundle.variant("fp32").graphs, options(axes={"bacth": (1, 2, 3)}))


def test_a_dla_takes_one_size_of_them(bundle: Bundle) -> None:
    graphs = bundle.variant("fp32").graphs
    held = {"target": "jetson-orin-jp6", "dla_core": 0}
    check_axes(bundle.manifest, graphs, options(**held, axes={"words": (30, 30, 30)}))
    for sides in ((1, 30, 30), (31, 31, 31)):
        with pytest.raises(InputError, match="--max-question sets it"):
            check_axes(bundle.manifest, graphs, options(**held, axes={"words": sides}))


def test_pictures_bring_no_more_than_their_most(bundle: Bundle) -> None:
    assert bundle.manifest.image is not None
    image = msgspec.structs.replace(bundle.manifest.image, axes={"image": (1, 5, 17)})
    manifest = msgspec.structs.replace(bundle.manifest, image=image)
    graphs = bundle.variant("fp32").graphs
    check_axes(manifest, graphs, options(axes={"image": (1, 3, 9)}))
    with pytest.raises(InputError, match="--axis image=1:3:18: a picture brings 1 to 17"):
        check_axes(manifest, graphs, options(axes={"image": (1, 3, 18)}))


def test_an_axis_is_given_once() -> None:
    assert parse_axes(["a=1:2:3", "b=1:1:1"]) == {"a": (1, 2, 3), "b": (1, 1, 1)}
    with pytest.raises(InputError, match="--axis a is given twice"):
        parse_axes(["a=1:2:3", "a=1:2:4"])


@pytest.mark.parametrize("name", ["INT8", "nope", "int8s"])
def test_a_name_that_is_no_precision_is_said_to_be_none(bundle: Bundle, name: str) -> None:
    with pytest.raises(InputError, match=rf"--precision {name}: there is no such precision .* fp32, fp16, bf16, int8"):
        choose_buildable(bundle, options(precision=name))


def with_variants(bundle: Bundle, **numerics: Numerics) -> Bundle:
    spec = bundle.variant("fp32")
    found = {name: msgspec.structs.replace(spec, precision=name, numerics=each) for name, each in numerics.items()}
    return Bundle(bundle.root, msgspec.structs.replace(bundle.manifest, variants=found), check=False)


@pytest.mark.parametrize(
    ("name", "numerics", "chosen"),
    [
        ("rtx", {"fp8": "fp8-fp16"}, "fp8"),
        ("rtx", {"fp32": "fp32", "bf16": "bf16"}, "bf16"),
        ("rtx", {"fp8": "fp8-fp16", "int8": "s8-fp16"}, "int8"),
        ("jetson-thor-jp7", {"fp8": "fp8-fp16", "int8": "s8-fp16"}, "fp8"),
        ("jetson-orin-jp6", {"fp8": "fp8-fp16", "fp16": "fp16"}, "fp16"),
    ],
)
def test_the_best_of_what_is_there_is_built(
    bundle: Bundle, name: str, numerics: dict[str, Numerics], chosen: str
) -> None:
    assert choose_buildable(with_variants(bundle, **numerics), options(target=name)) == chosen


def test_every_precision_of_a_target_is_looked_for() -> None:
    for row in TARGETS.values():
        assert set(preference(row)) == set(row.numerics)


def test_commands_are_quoted(bundle: Bundle, tmp_path: Path) -> None:
    odd = Bundle(tmp_path / "my b", bundle.manifest, check=False)
    with pytest.raises(InputError, match=r"edgevqa quantize '[^']*/my b' --precision mixed"):
        choose_buildable(odd, options(precision="mixed"))


@pytest.mark.parametrize("architecture", ["x86_64", "AMD64"])
def test_a_jetsons_engines_are_built_on_it(architecture: str) -> None:
    refuse_elsewhere(target("jetson-orin-jp6"), "aarch64")
    refuse_elsewhere(target("server-trt10"), architecture)
    with pytest.raises(UnavailableError, match=r"are built on the Jetson itself; .*edgevqa bundle pack") as caught:
        refuse_elsewhere(target("jetson-orin-jp6"), architecture)
    assert "pip" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_new_tokens": 10**20}, "--max-new-tokens 1000+: it is a count of tokens; expected 1 to 2,147"),
        ({"max_prompt": -3}, "--max-prompt -3"),
        ({"batch": (10**12,)}, "--batch 1000"),
        ({"compute_capabilities": ("12",)}, r"--compute-capability 12: .* Did you mean 12\.0\?"),
        ({"target": "jetson-orin-jp6", "dla_core": -1}, "--dla-core -1: expected 0 or more"),
        ({"axes": {"a": (1, 2, 2**31)}}, "--axis a"),
    ],
)
def test_sizes_are_bounded(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        options(**changes)


def test_sizes_in_terabytes_are_read_and_endless_ones_are_not() -> None:
    assert parse_size("1TB", "--memory-budget") == 10**12
    assert parse_size("1TiB", "--memory-budget") == 1 << 40
    with pytest.raises(InputError, match="--memory-budget"):
        parse_size("9" * 400 + "TB", "--memory-budget")


def test_the_record_tells_every_option_that_was_given() -> None:
    assert options().recorded() == {"batch": "1,4,8"}
    given = options(
        batch=(2,), max_question=5, max_prompt=6, max_new_tokens=7, axes={"a": (1, 2, 3), "b": (4, 4, 4)}
    ).recorded()
    assert given == {
        "batch": "2",
        "max_question": 5,
        "max_prompt": 6,
        "max_new_tokens": 7,
        "axes": "a=1:2:3 b=4:4:4",
    }
