"""`edgevqa build` without a TensorRT: what it prints for a board that builds by itself, what it says next, and when stopped."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import pytest

from edgevqa.cli.build import next_line
from edgevqa.export import trtexec
from edgevqa.export.engine import build as building
from edgevqa.export.engine import profiles
from edgevqa.export.engine.build import BuiltEngines
from edgevqa.export.engine.options import BuildOptions
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.bundle_writer import BundleWriter
from edgevqa.runtime.engines import EngineRecord
from edgevqa.runtime.machine import Gpu, Machine, read_machine
from edgevqa.runtime.questions import Questions

Invoke = Callable[..., tuple[int, str, str]]
LEGACY = ("--target", "jetson-orin-legacy")


@pytest.fixture
def legacy_bundle(reference_bundle: Path, tmp_path: Path) -> Path:
    """The reference bundle, whose graphs say that they were exported for the board."""
    path = Path(shutil.copytree(reference_bundle, tmp_path / "bundle"))
    bundle = Bundle.open(path)
    spec = bundle.variant("fp32")
    graphs = {name: msgspec.structs.replace(graph, opset=17) for name, graph in spec.graphs.items()}
    with BundleWriter.extend(bundle) as writer:
        variants = {"fp32": msgspec.structs.replace(spec, graphs=graphs)}
        writer.finish(msgspec.structs.replace(bundle.manifest, variants=variants))
    return path


def test_the_lines_of_a_board_that_builds_by_itself_are_printed(invoke: Invoke, legacy_bundle: Path) -> None:
    code, out, err = invoke("build", legacy_bundle, *LEGACY, "--batch", "2", "--max-question", "7")
    lines = out.splitlines()
    assert code == 0
    assert len(lines) == len(Bundle.open(legacy_bundle).variant("fp32").graphs)
    assert all(line.startswith("trtexec --onnx=graphs/fp32/") for line in lines)
    assert ":2x7," in out
    assert ":2x30" not in out
    halved = [line.split("--saveEngine=")[1].split(".engine")[0] for line in lines if "--fp16" in line]
    assert halved == ["vision_trunk", "vision_fusion", "projector"]
    assert "Nothing was built" in err
    assert "above FP16's 65,504" in err
    code, out, _ = invoke("build", legacy_bundle, *LEGACY, "--batch", "2", "--max-question", "7", "--json")
    assert (code, json.loads(out)["lines"]) == (0, lines)


def test_lines_tell_sizes_that_are_open_in_a_graph_and_fixed_in_the_build(invoke: Invoke, legacy_bundle: Path) -> None:
    """What trtexec is not told it takes for 1: a cache of one slot, say."""
    code, out, _ = invoke("build", legacy_bundle, *LEGACY, "--batch", "1", "--max-question", "1")
    assert code == 0
    assert all(f"--{side}Shapes=" in line for line in out.splitlines() for side in ("min", "opt", "max"))
    assert "encoder_attention_mask:1x66" in out.splitlines()[-1], "65 image tokens and a word"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--precision", "int8"), "cannot run int8: FP16 scales need opset 19"),
        (("--refit",), "--max-new-tokens are all that its lines take"),
        (("--compute-capability", "8.7"), "Target 'jetson-orin-legacy' is built by trtexec: "),
        (("--axis", "words=1:2:3"), "--max-question sets it"),
        (("--max-question", "31"), "at most 30 tokens"),
    ],
)
def test_what_the_lines_cannot_have_is_refused(
    invoke: Invoke, legacy_bundle: Path, given: tuple[str, ...], message: str
) -> None:
    code, out, err = invoke("build", legacy_bundle, *LEGACY, *given)
    assert (code, out) == (2, "")
    assert message in err


def test_the_lines_have_room_for_the_template_as_a_build_has(
    legacy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not for the longest that there can be."""
    seen: list[int | None] = []

    def axis_ranges(*given: Any, template: int | None = None) -> Any:
        seen.append(template)
        return profiles.axis_ranges(*given, template=template)

    monkeypatch.setattr(trtexec, "axis_ranges", axis_ranges)
    bundle = Bundle.open(legacy_bundle)
    main = Questions.of(bundle).main
    assert main is not None
    assert list(trtexec.trtexec_lines(bundle))
    assert seen == [main.template_tokens]


def test_graphs_of_newer_boards_are_refused(invoke: Invoke, reference_bundle: Path) -> None:
    code, out, err = invoke("build", reference_bundle, *LEGACY)
    assert (code, out) == (2, "")
    assert "has opset 20; TensorRT 8 reads 17. Export again for the board" in err


def built(bundle: Path, **record: Any) -> BuiltEngines:
    given: dict[str, Any] = {
        "format": 1,
        "target": "rtx",
        "variant": "fp32",
        "precision": "fp32",
        "numerics": "fp32",
        "flavour": "tensorrt-rtx",
        "tensorrt_version": (1, 7, 1, 116),
        "os": "linux",
        "arch": "x86_64",
        "device": None,
        "compute_capabilities": ["8.0", "8.9"],
        "hardware_compatibility": "none",
        "version_compatible": False,
        "weight_stripped": False,
        "refittable": False,
        "dla_core": None,
        "driver": None,
        "jetpack": None,
        "l4t": None,
        "calibration_sha256": None,
        "options": {},
        "graphs": {},
        **record,
    }
    return BuiltEngines(
        bundle=str(bundle), key="rtx/fp32", record=EngineRecord(**given), reused=[], warnings={}, seconds=1.0
    )


def machine(*capabilities: str) -> Machine:
    gpus = [Gpu(name="X", driver="1", memory_mb=1, compute_capability=each) for each in capabilities]
    return msgspec.structs.replace(read_machine(), gpus=gpus, jetson=None)


def test_the_next_step_is_the_question_or_the_way_to_a_gpu(
    reference_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgevqa.cli.build.nvidia_driver", lambda: False)
    path = Path(shutil.copytree(reference_bundle, tmp_path / "my bundle"))
    asked = f"edgevqa ask '{path}' PICTURE \"QUESTION\" --precision fp32 --backend tensorrt-rtx"
    assert next_line(built(path), machine("8.9")) == f"Ask it: {asked}"
    there = next_line(built(path), machine())
    assert asked in there
    assert f"This machine has no NVIDIA GPU that could run them. Take the bundle to one that has: {pack(path)}" in there
    other = next_line(built(path), machine("8.6"))
    assert "This machine's GPU has compute capability 8.6; the engines are for 8.0, 8.9" in other
    server = built(path, target="server-trt10", flavour="tensorrt", compute_capabilities=["8.6"])
    assert next_line(server, machine("8.6")).endswith("--backend tensorrt")
    monkeypatch.setattr("edgevqa.cli.build.nvidia_driver", lambda: True)
    assert next_line(built(path), machine()) == f"Ask it: {asked}", "nvidia-smi alone is missing"


def pack(path: Path) -> str:
    return f"edgevqa bundle pack '{path}'"


@pytest.mark.parametrize("ending", [KeyboardInterrupt(), SystemExit(128 + signal.SIGTERM)])
def test_a_stopped_build_says_what_is_kept(
    invoke: Invoke, reference_bundle: Path, monkeypatch: pytest.MonkeyPatch, ending: BaseException
) -> None:
    def stopped(*_: object, **__: object) -> NoReturn:
        raise ending

    monkeypatch.setattr(building, "build", stopped)
    code, out, err = invoke("build", reference_bundle, "--target", "rtx")
    assert (code, out) == (130 if isinstance(ending, KeyboardInterrupt) else 143, "")
    assert "Engines that were finished are kept: the same command goes on with the others." in err
    code, _, err = invoke("build", reference_bundle, "--target", "rtx", "--rebuild")
    assert "finished are kept" not in err
    assert "With --rebuild no finished engine is kept; run again without --rebuild to keep them." in err


def test_a_stopped_build_whose_cache_takes_nothing_says_so(
    invoke: Invoke, reference_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, unkept: list[str], **__: object) -> NoReturn:
        unkept.append("It cannot be kept in /full.")
        raise KeyboardInterrupt

    monkeypatch.setattr(building, "build", stopped)
    _, _, err = invoke("build", reference_bundle, "--target", "rtx")
    assert "The bundle is as it was. It cannot be kept in /full." in err
    assert "finished are kept" not in err


def test_a_timing_cache_can_be_told_to_the_building_process(
    invoke: Invoke, reference_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told: list[BuildOptions] = []

    def stopped(path: Path, options: BuildOptions, **_: object) -> NoReturn:
        told.append(msgspec.json.decode(msgspec.json.encode(options), type=BuildOptions))
        raise KeyboardInterrupt

    monkeypatch.setattr(building, "build", stopped)
    invoke("build", reference_bundle, "--target", "server-trt10", "--timing-cache", tmp_path / "own.cache")
    assert told[0].timing_cache == str(tmp_path / "own.cache")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--axis", "frames=1:2:3", "--axis", "frames=1:2:4"), "--axis frames is given twice"),
        (
            ("--max-new-tokens", "99999999999999999999"),
            "--max-new-tokens 99999999999999999999: it is a count of tokens",
        ),
        (("--memory-budget", "9TBs"), "--memory-budget 9TBs: expected a size"),
        (("--precision", "INT8"), "--precision INT8: there is no such precision or variant"),
        (("--compute-capability", "12"), "Did you mean 12.0?"),
    ],
)
def test_wrong_options_are_refused_before_the_start(
    invoke: Invoke, reference_bundle: Path, given: tuple[str, ...], message: str
) -> None:
    code, out, err = invoke("build", reference_bundle, "--target", "rtx", *given)
    assert (code, out) == (2, "")
    assert message in err


@pytest.mark.skipif(sys.platform == "darwin", reason="no machine of that kind builds for a Jetson")
def test_a_jetson_is_built_on_the_jetson(
    invoke: Invoke, reference_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    code, out, err = invoke("build", reference_bundle, "--target", "jetson-orin-jp6")
    assert (code, out) == (3, "")
    assert "are built on the Jetson itself" in err
    assert "pip" not in err
