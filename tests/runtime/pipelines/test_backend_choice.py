"""`--backend auto`: measured once, remembered as long as nothing changes, and never at the cost of an answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgevqa.runtime import Pipeline, backend_choice, sessions
from edgevqa.runtime.backend_choice import Choice, choose_run
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.bundle_writer import BundleWriter
from edgevqa.runtime.errors import BundleError, EdgeVQAError, InputError
from edgevqa.runtime.pipelines.base import PipelineOptions
from edgevqa.runtime.sessions import BACKENDS, Backend, ort
from edgevqa.runtime.sessions.base import Array, Session, SessionOptions, Tensor
from edgevqa.runtime.sessions.ort import OrtSession

AUTO = PipelineOptions(threads=1)


class SlowBackend:
    """ONNX Runtime with a pause before every run: a second backend whose speed the test decides."""

    pause_s = 0.02
    broken: Exception | None = None
    opened: list[str]

    @classmethod
    def open_session(cls, bundle: Bundle, variant: str, graph: str, options: SessionOptions) -> Session:
        cls.opened.append(variant)
        if cls.broken is not None:
            raise cls.broken
        return _Slow(bundle.graph_path(variant, graph), graph, bundle.graph(variant, graph), options)


class _Slow(OrtSession):
    def run(self, inputs: Mapping[str, Tensor | Array]) -> dict[str, Tensor]:
        time.sleep(SlowBackend.pause_s)
        return super().run(inputs)


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two backends, `quick` and `slow`, none measured yet; the folder of records."""
    monkeypatch.delenv("EDGEVQA_BACKEND")
    monkeypatch.setenv("EDGEVQA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(SlowBackend, "opened", [], raising=False)
    quick = msgspec.structs.replace(BACKENDS["onnxruntime"], name="quick")
    slow = msgspec.structs.replace(quick, name="slow", module="slow_backend", likes=("s8-fp32",))
    monkeypatch.setattr(sessions, "BACKENDS", {"slow": slow, "quick": quick})
    monkeypatch.setattr("edgevqa.runtime.graphs.BACKENDS", sessions.BACKENDS)
    monkeypatch.setitem(sys.modules, "slow_backend", SlowBackend)
    return tmp_path / "cache" / "backends"


def count_measurings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The notes of every measuring from now on."""
    monkeypatch.setattr(backend_choice, "ENOUGH_S", 0.05)
    return []


def with_int8(source: Path, target: Path) -> Path:
    """The bundle with two variants called int8 in different numerics (the same graphs)."""
    bundle = Bundle.open(source)
    with BundleWriter(target) as writer:
        variants = {}
        for name, numerics in (("fp32", "fp32"), ("int8-s8-fp32", "s8-fp32"), ("int8-u8-fp32", "u8-fp32")):
            graphs = {
                graph: msgspec.structs.replace(
                    spec,
                    file=writer.add_bytes(bundle.graph_path("fp32", graph).read_bytes(), f"graphs/{name}/{graph}.onnx"),
                )
                for graph, spec in bundle.variant("fp32").graphs.items()
            }
            variants[name] = msgspec.structs.replace(
                bundle.variant("fp32"),
                precision="int8" if name.startswith("int8") else "fp32",
                numerics=numerics,
                graphs=graphs,
            )
        assert bundle.tokenizer_path is not None
        assert bundle.manifest.text is not None
        tokenizer = writer.add_bytes(bundle.tokenizer_path.read_bytes(), "tokenizer.json")
        text = msgspec.structs.replace(bundle.manifest.text, tokenizer=tokenizer)
        writer.finish(msgspec.structs.replace(bundle.manifest, variants=variants, text=text))
    return target


def test_the_fastest_is_chosen_and_remembered(toy_bundle: Path, records: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, notes = Bundle.open(toy_bundle), count_measurings(monkeypatch)
    choice = choose_run(bundle, AUTO, notes.append)
    assert (choice.backend, choice.variant) == ("quick", "fp32")
    assert set(choice.latency_ms) == {"slow", "quick"}
    assert choice.latency_ms["slow"] > choice.latency_ms["quick"]
    assert "measuring slow and quick on this bundle, once" in notes[0]
    assert "quick (fp32) from now on" in notes[1]
    assert len(notes) == 2

    SlowBackend.opened.clear()
    assert choose_run(Bundle.open(toy_bundle), AUTO, notes.append) == choice
    assert SlowBackend.opened == []
    assert len(notes) == 2
    assert len(list(records.iterdir())) == 1


def test_the_record_is_honoured(toy_bundle: Path, records: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = count_measurings(monkeypatch)
    choose_run(Bundle.open(toy_bundle), AUTO)
    (record,) = records.iterdir()
    record.write_bytes(msgspec.json.encode(Choice(backend="slow", variant="fp32")))
    monkeypatch.setattr(SlowBackend, "pause_s", 0.0)
    with Pipeline.load(toy_bundle, threads=1, note=notes.append) as pipeline:
        assert pipeline.backend == "slow"
        assert pipeline.answer(np.zeros((9, 9, 3), np.uint8), "what color is the ball").text
    assert notes == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no json",
        b'{"backend": "warp", "variant": "fp32"}',
        b'{"backend": "quick", "variant": "int8"}',
        b'{"backend": "quick", "variant": "fp32", "latency_ms": {"quick": "fast"}}',
        b'{"backend": "quick", "variant": "fp32", "more": 1}',
    ],
)
def test_a_record_that_cannot_be_is_ignored_and_replaced(
    toy_bundle: Path, records: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    notes = count_measurings(monkeypatch)
    choice = choose_run(Bundle.open(toy_bundle), AUTO)
    (record,) = records.iterdir()
    record.write_bytes(content)
    again = choose_run(Bundle.open(toy_bundle), AUTO, notes.append)
    assert again.backend == choice.backend
    assert len(notes) == 2
    assert json.loads(record.read_bytes())["backend"] == "quick"


def test_another_version_threads_or_processor_is_measured_anew(
    toy_bundle: Path, records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = count_measurings(monkeypatch)

    def measured(options: PipelineOptions) -> bool:
        notes.clear()
        choose_run(Bundle.open(toy_bundle), options, notes.append)
        return bool(notes)

    assert measured(AUTO)
    assert not measured(AUTO)
    assert measured(PipelineOptions(threads=2))
    assert measured(PipelineOptions(threads=1, precision="fp32")) is False, "fp32 is what None means"
    monkeypatch.setattr(Backend, "version", lambda self: f"{self.name} 2031")
    assert measured(AUTO)
    assert not measured(AUTO)
    monkeypatch.setattr(backend_choice, "_cpu", lambda: "Zuse Z3")
    assert measured(AUTO)
    assert len(list(records.iterdir())) == 4


def test_another_bundle_is_measured_anew(
    toy_bundle: Path, plain_toy_bundle: Path, records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = count_measurings(monkeypatch)
    for bundle in (toy_bundle, plain_toy_bundle):
        choose_run(Bundle.open(bundle), AUTO, notes.append)
    assert len(notes) == 4


def test_each_backend_is_measured_with_the_variant_that_it_likes(
    toy_bundle: Path, records: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    count_measurings(monkeypatch)
    bundle = Bundle.open(with_int8(toy_bundle, tmp_path / "int8"))
    choice = choose_run(bundle, PipelineOptions(threads=1, precision="int8"))
    assert set(SlowBackend.opened) == {"int8-s8-fp32"}
    assert (choice.backend, choice.variant) == ("quick", "int8-u8-fp32")
    with Pipeline.load(bundle.root, threads=1, precision="int8") as pipeline:
        assert (pipeline.backend, pipeline.variant) == ("quick", "int8-u8-fp32")
    with pytest.raises(InputError, match="no variant 'bf16'"):
        choose_run(bundle, PipelineOptions(precision="bf16"))


@pytest.mark.parametrize("error", [BundleError("it lacks an operator."), ImportError("libx.so"), OSError("no such")])
def test_a_backend_that_fails_is_skipped_and_named(
    toy_bundle: Path, records: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    notes = count_measurings(monkeypatch)
    monkeypatch.setattr(SlowBackend, "broken", error)
    choice = choose_run(Bundle.open(toy_bundle), AUTO, notes.append)
    assert choice.backend == "quick"
    assert choice.failed == {"slow": str(error)}
    assert f"slow cannot run it: {error}" in notes[-1]


def test_when_all_fail_all_are_named(toy_bundle: Path, records: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Session:
        raise EdgeVQAError("no operator.")

    monkeypatch.setattr(SlowBackend, "broken", BundleError("no memory."))
    monkeypatch.setattr(ort, "open_session", fail)
    with pytest.raises(BundleError, match=r"No installed backend can run .*slow: no memory. quick: no operator."):
        choose_run(Bundle.open(toy_bundle), AUTO)
    assert not records.exists()


def test_what_is_wrong_with_the_bundle_is_said_as_always(
    records: Path, monkeypatch: pytest.MonkeyPatch, make_toy: Any
) -> None:
    path = make_toy(pipeline="future")
    with pytest.raises(BundleError, match=r"^The bundle asks for the pipeline 'future'"):
        choose_run(Bundle.open(path), AUTO)


def test_a_cache_that_cannot_be_written_means_measuring_again(
    toy_bundle: Path, records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = count_measurings(monkeypatch)
    records.parent.write_text("a file where the folder should be")
    for _ in range(2):
        assert choose_run(Bundle.open(toy_bundle), AUTO, notes.append).backend == "quick"
    assert len(notes) == 4


def test_a_single_backend_is_not_measured(toy_bundle: Path, records: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "BACKENDS", {"slow": sessions.BACKENDS["slow"]})
    choice = choose_run(Bundle.open(toy_bundle), AUTO)
    assert choice == Choice(backend="slow", variant="fp32")
    assert SlowBackend.opened == []
    assert choose_run(Bundle.open(toy_bundle), PipelineOptions(backend="slow")) == choice


@pytest.mark.skipif(not BACKENDS["openvino"].installed(), reason="openvino is not installed")
@pytest.mark.parametrize("chosen", ["onnxruntime", "openvino"])
def test_a_later_start_imports_the_chosen_backend_alone(toy_bundle: Path, tmp_path: Path, chosen: str) -> None:
    code = (
        "import sys\n"
        "from edgevqa.runtime import Pipeline\n"
        f"with Pipeline.load({str(toy_bundle)!r}, threads=1) as pipeline: print(pipeline.backend)\n"
        "print(*sorted({'onnxruntime', 'openvino'} & set(sys.modules)))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "EDGEVQA_BACKEND"}
    environment["EDGEVQA_CACHE_DIR"] = str(tmp_path / "cache")

    def start() -> list[str]:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
        return done.stdout.split("\n")[:2]

    assert start()[1] == "onnxruntime openvino"  # both were measured
    (record,) = (tmp_path / "cache" / "backends").iterdir()
    record.write_bytes(msgspec.json.encode(Choice(backend=chosen, variant="fp32")))
    assert start() == [chosen, chosen]
