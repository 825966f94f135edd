"""What TensorRT's builder is told for each option, on a strict simulator of it; what it then builds, nothing here can say."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgevqa.export.engine import child, network
from edgevqa.export.engine.protocol import Built, Job, Message, Phase
from edgevqa.runtime.engines import ShapeRange
from edgevqa.runtime.errors import CheckFailed, EdgeVQAError, InputError
from edgevqa.runtime.plans import read_header

Install = Callable[..., Any]
MakeJob = Callable[..., Job]
PLAIN: dict[str, Any] = {
    "flags": {"TF32"},
    "pools": {},
    "level": 3,
    "device": "GPU",
    "dla_core": -1,
    "hardware": "NONE",
    "verbosity": "DETAILED",
    "capabilities": [],
    "strongly_typed": True,
}
"""What TensorRT has without options: its own choices, and the two of ours, detailed layers and strong types."""
FIXED: dict[str, Any] = {"batch": (1,), "graph": "vision_trunk"}


def build(job: Job, tell: Callable[[Message], None] = lambda message: None) -> Built:
    return child.build(job, child.Stop(), tell)


@pytest.mark.parametrize(
    ("name", "version"),
    [("server-trt10", (10, 3, 0, 30)), ("server-trt10", (10, 16, 2, 10)), ("server-trt11", (11, 4, 0, 1))],
)
@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, {}),
        ({"workspace_bytes": 2_000_000_000}, {"pools": {"WORKSPACE": 2_000_000_000}}),
        ({"optimization_level": 0}, {"level": 0}),
        ({"optimization_level": 5}, {"level": 5}),
        ({"version_compatible": True}, {"flags": {"TF32", "VERSION_COMPATIBLE"}}),
        ({"strip_weights": True}, {"flags": {"TF32", "STRIP_PLAN"}}),
        ({"refit": True}, {"flags": {"TF32", "REFIT"}}),
        ({"hardware_compatible": True}, {"hardware": "AMPERE_PLUS"}),
        ({"numerics": "fp32"}, {"flags": set()}),
    ],
)
def test_each_option_reaches_the_builder(
    install: Install, make_job: MakeJob, name: str, version: Any, options: dict[str, Any], told: dict[str, Any]
) -> None:
    """And nothing else does. FP32 stays FP32: TensorRT would round its factors to TF32."""
    trt = install(version=version)
    job = make_job(name, **options)
    built = build(job)
    (has,) = trt.builds
    assert {key: getattr(has, key) for key in PLAIN} == {**PLAIN, **told}
    assert built.version == read_header(Path(job.engine)).version == version, "Python tells three of the four numbers"


@pytest.mark.parametrize("core", [0, 1])
def test_a_dla_is_the_default_device_with_the_gpu_behind_it(install: Install, make_job: MakeJob, core: int) -> None:
    trt = install(dla_cores=2, arch="aarch64")
    build(make_job("jetson-orin-jp6", dla_core=core, **FIXED))
    (has,) = trt.builds
    assert (has.device, has.dla_core, has.flags) == ("DLA", core, {"TF32", "GPU_FALLBACK"})


def test_a_dla_core_that_is_not_there_is_refused(install: Install, make_job: MakeJob) -> None:
    trt = install(dla_cores=2, arch="aarch64")
    with pytest.raises(InputError, match="--dla-core 2: TensorRT finds 2 DLA cores here"):
        build(make_job("jetson-orin-jp6", dla_core=2, **FIXED))
    assert not trt.builds


@pytest.mark.parametrize(
    ("given", "told"),
    [((), ["SM80", "SM86", "SM89", "SM120"]), (("8.9",), ["SM89"]), (("12.0", "8.6"), ["SM120", "SM86"])],
)
def test_tensorrt_rtx_is_told_the_gpus(
    install: Install, make_job: MakeJob, given: tuple[str, ...], told: list[str]
) -> None:
    trt = install("tensorrt_rtx", (1, 7, 1, 116))
    job = make_job("rtx", compute_capabilities=given)
    build(job)
    assert trt.builds[0].capabilities == told
    assert trt.builds[0].cache is None, "it has no timing cache"
    assert not Path(str(job.timing_cache)).exists()


@pytest.mark.parametrize("graph", ["vision_fusion", "language_decoder"])
def test_every_profile_is_given_with_its_three_sides(install: Install, make_job: MakeJob, graph: str) -> None:
    trt = install()
    job = make_job(batch=(1, 4, 8), graph=graph)
    built = build(job)
    has = trt.builds[0].profiles
    assert len(has) == len(job.profiles) == 2
    for found, wanted in zip(has, job.profiles, strict=True):
        assert found == {name: (tuple(each.min), tuple(each.opt), tuple(each.max)) for name, each in wanted.items()}
    assert built.profiles == job.profiles
    rows = [profile[next(iter(profile))][2][0] for profile in has]
    assert rows == [1, 8]


def test_the_record_has_the_profiles_that_tensorrt_has(
    install: Install, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were one left out, the engine would refuse shapes that its record promises."""
    trt = install()
    job = make_job(batch=(1, 4))
    plain = network.add_profiles

    class Forgetful:
        """A configuration that says yes and keeps nothing."""

        num_optimization_profiles = 0

        def add_optimization_profile(self, profile: Any) -> int:
            return 0

    monkeypatch.setattr(child, "add_profiles", lambda builder, config, job: plain(builder, Forgetful(), job))
    with pytest.raises(EdgeVQAError, match=r"has 0 profiles of graph 'vision_fusion', not the 2 that were given"):
        build(job)
    assert not trt.builds


def test_a_profile_that_tensorrt_refuses_ends_the_build(install: Install, make_job: MakeJob) -> None:
    install()
    job = make_job()
    name, good = next(iter(job.profiles[0].items()))
    wrong = ShapeRange(min=[9, *good.min[1:]], opt=good.opt, max=good.max)
    job = msgspec.structs.replace(job, profiles=[{**job.profiles[0], name: wrong}])
    with pytest.raises(CheckFailed, match=rf"takes no profile 0 of graph 'vision_fusion': .*{name} \[9"):
        build(job)


def test_the_timing_cache_is_read_from_its_file_and_written_to_it(install: Install, make_job: MakeJob) -> None:
    trt = install()
    job = make_job()
    place = Path(str(job.timing_cache))
    build(job)
    assert trt.builds[0].cache == b"timings:gpu0", "there was none"
    assert place.read_bytes() == b"timings:gpu0+tactics"
    build(job)
    assert trt.builds[1].cache == b"timings:gpu0+tactics"
    assert place.read_bytes() == b"timings:gpu0+tactics+tactics"
    assert [path.name for path in place.parent.iterdir()] == [place.name], "no draft is left"


@pytest.mark.parametrize("content", [b"noise", b"timings:another GPU"])
def test_a_timing_cache_that_does_not_fit_is_not_used(install: Install, make_job: MakeJob, content: bytes) -> None:
    trt = install()
    job = make_job()
    Path(str(job.timing_cache)).parent.mkdir()
    Path(str(job.timing_cache)).write_bytes(content)
    build(job)
    assert trt.builds[0].cache == b"timings:gpu0"


def test_progress_is_told_of_the_outermost_phase(
    install: Install, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    install()
    monkeypatch.setattr(child, "_TOLD_EVERY_S", -1.0)
    seen: list[Message] = []
    build(make_job(), seen.append)
    assert seen[:-2] == [Phase(name="Building", done=done, total=4) for done in (0, 1, 2, 3, 4, 4)]


def test_a_build_that_is_asked_to_stop_is_cancelled(install: Install, make_job: MakeJob) -> None:
    install()
    job, stop = make_job(), child.Stop()
    with pytest.raises(child.Cancelled):
        child.build(job, stop, stop.ask)
    assert not Path(job.engine).exists()
    assert not Path(str(job.timing_cache)).exists()


def test_what_the_builder_says_is_kept_and_told(install: Install, make_job: MakeJob) -> None:
    trt = install()
    severity = trt.ILogger.Severity
    trt.settings.says = [
        (severity.WARNING, "Some tactics\n were  skipped"),
        (severity.WARNING, "input x has Int64 binding."),
        (severity.ERROR, "could not find tactic: insufficient workspace"),
    ]
    assert build(make_job()).warnings == ["Some tactics were skipped"]
    trt.settings.fails = True
    message = r"cannot build graph 'vision_fusion': could not find tactic: insufficient workspace\. Raise --workspace"
    with pytest.raises(CheckFailed, match=message):
        build(make_job())


def test_the_tensors_are_those_of_the_network(install: Install, make_job: MakeJob) -> None:
    install()
    built = build(make_job())
    told = [(tensor.name, tensor.dtype, tensor.shape) for tensor in built.inputs]
    assert told[:2] == [
        ("trunk_states", "float32", ["image", 65, 160]),
        ("question_states", "float32", ["batch", "words", 128]),
    ]
    assert built.outputs[0].dtype == "float32"


def _layer(name: str, told: str, kind: str = "gemm") -> dict[str, Any]:
    return {"Name": name, "LayerType": kind, "Inputs": [], "Outputs": [{"Name": "y", "Format/Datatype": told}]}


LAYERS = json.dumps({"Layers": [_layer("norm", "Row major linear FP32"), _layer("fc", "Row major linear FP16 format")]})


@pytest.mark.parametrize("options", [{}, {"version_compatible": True}, {"dla_core": 1, **FIXED}])
def test_the_engine_is_inspected_where_a_gpu_can_load_it(
    install: Install, make_job: MakeJob, options: dict[str, Any]
) -> None:
    """Types are told once a context has shapes; a DLA's core and a program inside must be allowed for."""
    install(layers=LAYERS, dla_cores=2, arch="aarch64")
    built = build(make_job("jetson-orin-jp6", **options))
    assert (built.fp32_layers, built.warnings) == (["norm"], [])


def test_an_engine_that_tells_no_types_is_not_called_free_of_fp32(install: Install, make_job: MakeJob) -> None:
    install(layers=LAYERS)
    built = build(make_job(strip_weights=True))
    assert built.fp32_layers is None
    assert "nothing is a type" in built.warnings[0]


def test_an_engine_is_not_inspected_without_a_gpu_or_where_all_is_fp32(install: Install, make_job: MakeJob) -> None:
    install()
    assert build(make_job()).fp32_layers is None
    install("tensorrt_rtx", (1, 7, 1, 116))
    built = build(make_job("rtx"))
    assert (built.fp32_layers, built.warnings) == (None, []), "it builds for GPUs that are not there"
    install(layers=LAYERS)
    assert build(make_job(numerics="fp32")).fp32_layers is None


def test_the_engine_is_told_before_it_is_loaded_and_its_builder_is_gone_then(
    install: Install, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What loads an engine may die, and takes memory of its own."""
    trt = install()
    made: list[weakref.ref[Any]] = []
    plain = trt.Builder

    class Kept(plain):  # type: ignore[misc, valid-type]
        def __init__(self, logger: Any) -> None:
            super().__init__(logger)
            made.append(weakref.ref(self))

        def create_network(self, flags: int = 0) -> Any:
            network = super().create_network(flags)
            made.append(weakref.ref(network))
            return network

    def die(*_: object) -> None:
        assert len(made) == 2
        assert all(each() is None for each in made)
        raise MemoryError

    monkeypatch.setattr(trt, "Builder", Kept)
    monkeypatch.setattr(child, "inspect_plan", die)
    job, seen = make_job(), list[Message]()
    with pytest.raises(MemoryError):
        build(job, seen.append)
    told = seen[-1]
    assert isinstance(told, Built)
    assert told.seconds > 0
    assert (told.fp32_layers, Path(job.engine).is_file()) == (None, True)
