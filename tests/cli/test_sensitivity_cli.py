"""`edgevqa sensitivity`: the ranking in the terminal, as JSON and as a figure; user mistakes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from edgevqa.cli.sensitivity import bar
from edgevqa.runtime.bundle import Bundle

Invoke = Callable[..., tuple[int, str, str]]
DATA = ("--data", "scenes:7:200")


def test_the_bars() -> None:
    assert bar(1.0, 1.0) == "█" * 12
    assert bar(0.5, 1.0) == "█" * 6
    assert bar(1 / 96, 1.0) == "▏"
    assert bar(0.0, 1.0) == bar(0.0, 0.0) == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--time-limit", "soon"), "expected for example 90s, 30m, 2h or 1h30m"),
        (("--plot", "layers.txt"), "expected a file that ends in .svg, .png, .pdf"),
        (("--plot", "/dev/null/layers.svg"), "Give an output that you may write to"),
        (("--samples", "2"), "samples is 2; expected at least 16"),
        (("--target", "toaster"), "There is no target 'toaster'"),
        (("--target", "jetson-orin-legacy"), "cannot run mixed"),
        ((), "has no calibration. Make one: edgevqa calibrate"),
    ],
)
def test_mistakes(
    invoke: Invoke, fake_bundle: Bundle, arguments: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(fake_bundle.root.parent)
    code, out, err = invoke("sensitivity", fake_bundle.root, *DATA, *arguments)
    assert (code, out) == (2, "")
    assert message in err


def test_data_is_needed(invoke: Invoke, fake_bundle: Bundle) -> None:
    code, _, err = invoke("sensitivity", fake_bundle.root)
    assert code == 2
    assert "--data" in err


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_ranking(invoke: Invoke, reference_bundle: Path, tmp_path: Path) -> None:
    from edgevqa.calibration.observation.run import CalibrateOptions, calibrate

    path = tmp_path / "copy.bundle"
    shutil.copytree(reference_bundle, path)
    calibrate(path, CalibrateOptions(data="scenes:3:400", samples=16, threads=1))
    arguments = ("sensitivity", path, *DATA, "--samples", 16, "--worst", 1, "--threads", 1)
    figure, picture = tmp_path / "layers.svg", tmp_path / "layers.png"
    code, out, err = invoke(*arguments, "--plot", figure, "--json")
    assert code == 0, err
    report = json.loads(out)
    harms = [row["harm"] for row in report["layers"]]
    assert harms == sorted(harms, reverse=True)
    assert [row["predicted"] for row in report["layers"]].count(False) == 1
    assert report["samples"] == 16
    assert ElementTree.parse(figure).getroot().tag.endswith("svg")
    code, out, err = invoke(*arguments, "--plot", picture)
    assert code == 0, err
    assert report["layers"][0]["layer"] in out
    assert "█" in out
    assert "All layers quantised: " in out
    assert "warning: Only 16 samples" in err
    with Image.open(picture) as image:
        assert image.width > 1000
