"""On a real GPU: real engines, compared with ONNX Runtime. Nothing here is simulated."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevqa.runtime import Pipeline
from edgevqa.runtime.errors import UnavailableError
from edgevqa.runtime.sessions.trt.driver import Cuda, load_bindings
from edgevqa.runtime.targets import target

pytestmark = [pytest.mark.gpu, pytest.mark.tensorrt]
QUESTIONS = ["what color is the shape?", "is there a circle in the image?", "what shape is in the image?"]
KINDS = {
    "rtx": ("tensorrt_rtx", "tensorrt-rtx"),
    "server-trt10": ("tensorrt", "tensorrt"),
    "server-trt11": ("tensorrt", "tensorrt"),
}


@pytest.fixture
def cuda() -> Cuda:
    try:
        return Cuda(load_bindings())
    except UnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(params=KINDS)
def built(request: pytest.FixtureRequest, cuda: Cuda, reference_bundle: Path, tmp_path: Path) -> tuple[Path, str]:
    """The reference bundle with engines for this GPU, and the backend that runs them."""
    from edgevqa.export.engine.build import build
    from edgevqa.export.engine.flavours import capability_member, load_toolkit
    from edgevqa.export.engine.options import BuildOptions

    module, backend = KINDS[request.param]
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    major = int(importlib.import_module(module).__version__.partition(".")[0])
    if module == "tensorrt" and not request.param.endswith(str(major)):
        pytest.skip(f"this is TensorRT {major}")
    path = Path(shutil.copytree(reference_bundle, tmp_path / "bundle"))
    capability = cuda.info.compute_capability
    if module == "tensorrt_rtx" and capability_member(load_toolkit(target("rtx")), capability) is None:
        pytest.skip(f"TensorRT-RTX builds nothing for compute capability {capability}")
    extra: dict[str, Any] = {"compute_capabilities": (capability,)} if module == "tensorrt_rtx" else {}
    build(path, BuildOptions(target=request.param, batch=(1, 4), **extra))
    return path, backend


def test_memory_goes_to_the_gpu_and_back(cuda: Cuda) -> None:
    stream = cuda.create_stream()
    block, address = cuda.host_alloc(1000), cuda.malloc(1000, stream)
    block.view[:] = np.arange(1000, dtype=np.uint8)
    cuda.upload(address, block.address, 1000, stream)
    cuda.synchronize(stream)
    block.view[:] = 0
    cuda.download(block.address, address, 1000, stream)
    cuda.synchronize(stream)
    np.testing.assert_array_equal(block.view, np.arange(1000, dtype=np.uint8))
    cuda.free(address, stream)
    cuda.synchronize(stream)
    cuda.host_free(block)
    cuda.destroy_stream(stream)


@pytest.mark.parametrize("graphs", ["0", "1"])
def test_answers_are_those_of_onnx_runtime(built: tuple[Path, str], graphs: str) -> None:
    path, backend = built
    random = np.random.default_rng(3)
    scenes = [random.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(4)]
    with (
        Pipeline.load(path, backend="onnxruntime") as ort,
        Pipeline.load(path, backend=backend, provider_options={"cuda_graphs": graphs}, max_batch=4) as gpu,
    ):
        for _ in range(3):  # launched, captured, replayed
            for scene in scenes:
                want, found = ort.answer(scene, QUESTIONS), gpu.answer(scene, QUESTIONS)
                assert [each.tokens for each in found] == [each.tokens for each in want]
                for one, other in zip(want, found, strict=True):
                    assert one.log_probability == pytest.approx(other.log_probability, abs=0.02)
                beams = [each.answer(scene, QUESTIONS[0], num_beams=2).tokens for each in (ort, gpu)]
                assert beams[0] == beams[1]
