"""`edgevqa doctor`: readable, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable

import edgevqa
from edgevqa.runtime.doctor import EXTRAS

Invoke = Callable[..., tuple[int, str, str]]


def test_doctor(invoke: Invoke) -> None:
    code, out, err = invoke("doctor")
    assert (code, err) == (0, "")
    assert out.startswith(f"edgevqa       {edgevqa.__version__}\n")
    for text in ("ONNX Runtime", "OpenVINO", "TensorRT-RTX", "processor", *EXTRAS):
        assert text in out


def test_doctor_json(invoke: Invoke) -> None:
    code, out, err = invoke("doctor", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["edgevqa"] == edgevqa.__version__
    assert [extra["name"] for extra in found["extras"]] == list(EXTRAS)
    assert {"python", "cpu", "instruction_sets", "memory_mb", "gpus", "jetson"} <= set(found["machine"])
