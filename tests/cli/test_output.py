"""What commands print: lines of progress without a terminal, numbers of tables, and commands that can be pasted."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from edgevqa.calibration.quantization.run import QuantizedVariant
from edgevqa.cli import doctor
from edgevqa.cli.output import step_bar
from edgevqa.cli.quantize import print_variant
from edgevqa.evaluation.plan import require_variant
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.doctor import diagnose
from edgevqa.runtime.errors import InputError

Invoke = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).parents[2]
ROOMS = ("calibration", "edgevqa/cli", "evaluation", "runtime")
COMMANDS = "ask|build|bundle (?:un)?pack|calibrate|compare|evaluate|export|quantize"
UNQUOTED = re.compile(rf'edgevqa (?:{COMMANDS}) [^"\n]*?\{{[\w.]*(?:root|bundle|path|name|output|page)\}}')


def test_every_step_has_a_line_and_what_changes_within_one_has_not(capsys: pytest.CaptureFixture[str]) -> None:
    with step_bar("Exporting") as report:
        report("load the model", 0, 1)
        report("trace vision_trunk", 0, 2)
        report("trace projector", 1, 2)
        report("projector: tactics 40 of 120", 1, 2)
        report("projector: tactics 41 of 120", 1, 2)
    assert capsys.readouterr().err.splitlines() == [
        "Exporting: load the model",
        "Exporting: trace vision_trunk",
        "Exporting: trace projector",
        "Exporting: projector: tactics 40 of 120",
    ]


def test_a_cast_variants_counts_are_written_as_those_of_others(
    fake_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = fake_bundle.manifest.variants["fp16"]
    graphs = {name: msgspec.structs.replace(graph, nodes={"Cast": 1234}) for name, graph in spec.graphs.items()}
    spec = msgspec.structs.replace(spec, graphs=graphs)
    print_variant(QuantizedVariant(name="fp16", spec=spec, report=None, check=None, size_bytes=10), 20)
    assert re.search(r"projector +2,080 +1,234", capsys.readouterr().out)


@pytest.mark.parametrize(("devices", "told"), [([], "none: builds only"), (["NVIDIA H200"], "NVIDIA H200")])
def test_doctor_says_what_tensorrt_rtx_can_do_here(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, devices: list[str], told: str
) -> None:
    found = diagnose()
    *others, rtx = found.backends
    rtx = msgspec.structs.replace(rtx, version="1.7.1", devices=devices)
    found = msgspec.structs.replace(found, backends=[*others, rtx])
    monkeypatch.setattr(doctor, "diagnose", lambda: found)
    assert re.search(rf"^ TensorRT-RTX +1\.7\.1 +{told} ", invoke("doctor")[1], re.MULTILINE)


def test_a_path_with_a_space_is_quoted_in_commands(fake_bundle: Bundle) -> None:
    with pytest.raises(InputError, match="edgevqa quantize 'my bundle' --precision mixed --data DATA"):
        require_variant("my bundle", fake_bundle.manifest, "mixed")


def test_no_command_in_a_message_has_a_path_as_it_is() -> None:
    """What a message says to type is pasted: a path goes through `shlex.quote`."""
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
        for match in UNQUOTED.finditer(path.read_text(encoding="utf-8"))
    ]
    assert found == []
