"""Which engines are run: the set that fits best, and refusals by name before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgevqa.runtime import Pipeline
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.errors import BundleError, InputError, MissingExtraError, UnavailableError
from edgevqa.runtime.graphs import choose_variant
from edgevqa.runtime.sessions import BACKENDS, open_session
from edgevqa.runtime.sessions.base import SessionOptions
from edgevqa.runtime.sessions.trt.session import EngineSession

AXES = {"positions": (5, 8, 16)}
PIXELS = {"pixel_values": np.ones((1, 3, 8, 8), np.float32)}


def open_trunk(path: Path, backend: str = "tensorrt", **given: str) -> str:
    """Open, run and close the trunk; gives the key of the engine set."""
    bundle = Bundle.open(path)
    options = SessionOptions(provider_options=given)
    with open_session(bundle, "fp32", "vision_trunk", backend=backend, options=options) as session:
        assert isinstance(session, EngineSession)
        session.run(PIXELS)["trunk_states"].numpy()
        return session.key


@pytest.mark.parametrize(("backend", "key"), [("tensorrt", "server-trt10/fp32"), ("tensorrt-rtx", "rtx/fp32")])
def test_each_backend_takes_the_engines_of_its_flavour(
    simulated: Any, engines: Callable[..., Path], toy_bundle: Path, backend: str, key: str
) -> None:
    assert open_trunk(engines(toy_bundle, "rtx", "server-trt10", axes=AXES), backend) == key


def test_of_several_that_fit_the_one_tuned_for_this_gpu_is_taken(
    simulated: Any, engines: Callable[..., Path], toy_bundle: Path
) -> None:
    path = engines(toy_bundle, axes=AXES, record={"device": "Other", "hardware_compatibility": "ampere_plus"})
    from tests.simulators.engine_files import add_engines

    assert open_trunk(path) == "server-trt10/fp32"
    add_engines(path, "jetson-orin-jp6", axes=AXES)
    assert open_trunk(path) == "jetson-orin-jp6/fp32"
    assert open_trunk(path, target="server-trt10") == "server-trt10/fp32"


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (
            {"compute_capabilities": ["8.7"]},
            r"compute capability 8\.7; this GPU \(Simulated GPU\) has 8\.6.*edgevqa build",
        ),
        ({"tensorrt_version": (10, 16, 2, 10)}, r"built by tensorrt 10\.16\.2\.10; here is 10\.3\.0\. Build"),
        ({"arch": "aarch64", "os": "other"}, "was built for other on aarch64"),
        ({"weight_stripped": True}, "hold no weights.*without --strip-weights"),
    ],
)
def test_engines_that_do_not_fit_are_refused_by_name(
    simulated: Any, engines: Callable[..., Path], toy_bundle: Path, record: dict[str, Any], said: str
) -> None:
    with pytest.raises(BundleError, match=said):
        open_trunk(engines(toy_bundle, axes=AXES, record=record))


def test_of_several_that_do_not_fit_the_nearest_is_told(
    simulated: Any, engines: Callable[..., Path], toy_bundle: Path
) -> None:
    from tests.simulators.engine_files import add_engines

    path = engines(toy_bundle, axes=AXES, record={"arch": "other"})
    add_engines(path, "jetson-orin-jp6", axes=AXES, record={"compute_capabilities": ["8.7"]})
    with pytest.raises(BundleError, match=r"'jetson-orin-jp6/fp32' .* compute capability 8\.7"):
        open_trunk(path)


def test_a_bundle_without_engines_is_answered_with_the_build(simulated: Any, toy_bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"no TensorRT engines of variant 'fp32'.*edgevqa build .*--precision fp32"):
        open_trunk(toy_bundle)


def test_a_target_without_engines_names_those_there_are(
    simulated: Any, engines: Callable[..., Path], toy_bundle: Path
) -> None:
    with pytest.raises(InputError, match=r"for target 'rtx'; it has: server-trt10/fp32\. Build them"):
        open_trunk(engines(toy_bundle, axes=AXES), target="rtx")


def test_engines_of_another_flavour_are_refused_as_such(
    simulated: Any, engines: Callable[..., Path], toy_bundle: Path
) -> None:
    with pytest.raises(BundleError, match="is for tensorrt-rtx; what runs here is tensorrt"):
        open_trunk(engines(toy_bundle, "rtx", axes=AXES))


def test_a_plan_that_is_not_what_the_record_says(
    simulated: Any, engines: Callable[..., Path], toy_bundle: Path
) -> None:
    path = engines(toy_bundle, axes=AXES)
    file = path / "engines/server-trt10/fp32/vision_trunk.engine"
    data = bytearray(file.read_bytes())
    data[27] = 31
    file.write_bytes(data)
    with pytest.raises(BundleError, match=r"vision_trunk\.engine"):
        open_trunk(path)


def test_lean_and_dispatch_run_version_compatible_engines_alone(
    simulated: Any, engines: Callable[..., Path], toy_bundle: Path
) -> None:
    simulated.remove("tensorrt")
    simulated.install("tensorrt_dispatch", (10, 9, 0, 1))
    with pytest.raises(BundleError, match=r"here is 10\.9\.0\. Build"):
        open_trunk(engines(toy_bundle, axes=AXES))
    simulated.install("tensorrt_dispatch")
    with pytest.raises(BundleError, match="not version-compatible, and TensorRT's dispatch runtime runs no others"):
        open_trunk(engines(toy_bundle, axes=AXES))
    simulated.install("tensorrt_dispatch", (10, 9, 0, 1))
    compatible = engines(toy_bundle, axes=AXES, record={"version_compatible": True})
    assert open_trunk(compatible, allow_engine_code="1") == "server-trt10/fp32"
    with pytest.raises(UnavailableError, match=r"TensorRT's lean runtime \(tensorrt_lean\), which is not installed"):
        open_trunk(compatible, runtime="lean")


def test_without_tensorrt_it_is_unavailable(simulated: Any, engines: Callable[..., Path], toy_bundle: Path) -> None:
    path = engines(toy_bundle, axes=AXES)
    for name in ("tensorrt", "tensorrt_lean", "tensorrt_dispatch", "tensorrt_rtx"):
        simulated.remove(name)
    with pytest.raises(MissingExtraError, match=r"pip install 'edgevqa\[tensorrt-rtx\]'"):
        open_trunk(path, "tensorrt-rtx")
    with pytest.raises(UnavailableError, match=r"comes with JetPack.*pip install tensorrt, in the version that built"):
        open_trunk(path)


def test_tensorrt_rtx_keeps_what_it_compiled(
    simulated: Any, engines: Callable[..., Path], toy_bundle: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEVQA_CACHE_DIR", str(toy_bundle.parent / "cache"))
    path = engines(toy_bundle, "rtx", axes=AXES)
    open_trunk(path, "tensorrt-rtx")
    (kept,) = (toy_bundle.parent / "cache" / "tensorrt-rtx").iterdir()
    assert kept.read_bytes() == b"compiled"
    kept.write_bytes(b"compiled more")
    open_trunk(path, "tensorrt-rtx")
    assert kept.read_bytes() == b"compiled more", "it was read, and is written as it is"
    kept.write_bytes(b"of another GPU")
    open_trunk(path, "tensorrt-rtx")
    assert kept.read_bytes() == b"compiled"


def test_without_a_precision_the_variant_with_engines_is_run(engines: Callable[..., Path], toy_bundle: Path) -> None:
    manifest = Bundle.open(engines(toy_bundle, axes=AXES)).manifest
    int8 = msgspec.structs.replace(manifest.variants["fp32"], precision="int8", numerics="s8-fp16")
    sets = {"server-trt10/int8": msgspec.structs.replace(manifest.engines["server-trt10/fp32"], variant="int8")}
    both = msgspec.structs.replace(manifest, variants={**manifest.variants, "int8": int8}, engines=sets)
    assert choose_variant(both, None, "tensorrt") == "int8"
    assert choose_variant(both, None, "onnxruntime") == "fp32"
    assert choose_variant(both, "fp32", "tensorrt") == "fp32", "what was asked for; opening says how to build it"
    assert choose_variant(both, None, "tensorrt-rtx") == "fp32"
    assert BACKENDS["tensorrt"].can_run(both)
    assert not BACKENDS["tensorrt-rtx"].can_run(both)


def test_auto_leaves_out_backends_without_engines(
    simulated: Any, toy_bundle: Path, monkeypatch: pytest.MonkeyPatch, pictures: list[np.ndarray]
) -> None:
    from edgevqa.runtime import graphs, sessions

    monkeypatch.delenv("EDGEVQA_BACKEND")
    rows = {name: BACKENDS[name] for name in ("onnxruntime", "tensorrt", "tensorrt-rtx")}
    for module in (graphs, sessions):
        monkeypatch.setattr(module, "BACKENDS", rows)
    notes: list[str] = []
    with Pipeline.load(toy_bundle, note=notes.append) as pipeline:
        assert pipeline.backend == "onnxruntime"
    assert notes == []


def test_auto_measures_tensorrt_where_there_are_engines(
    simulated: Any,
    engines: Callable[..., Path],
    toy_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from edgevqa.runtime import graphs, sessions

    monkeypatch.delenv("EDGEVQA_BACKEND")
    monkeypatch.setenv("EDGEVQA_CACHE_DIR", str(toy_bundle.parent / "choices"))
    rows = {name: BACKENDS[name] for name in ("onnxruntime", "tensorrt", "tensorrt-rtx")}
    for module in (graphs, sessions):
        monkeypatch.setattr(module, "BACKENDS", rows)
    path = engines(toy_bundle, axes=AXES)
    notes: list[str] = []
    monkeypatch.setattr(sessions, "nvidia_driver", lambda: False)
    with Pipeline.load(path, note=notes.append) as pipeline:
        assert (pipeline.backend, notes) == ("onnxruntime", []), "engines, but nothing that runs them"
    monkeypatch.setattr(sessions, "nvidia_driver", lambda: True)
    with Pipeline.load(path, note=notes.append) as pipeline:
        assert pipeline.backend in rows
    assert notes[0].startswith("note: measuring onnxruntime and tensorrt on this bundle")
