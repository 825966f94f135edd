"""Our layer over cuda-python: errors that say what to do, and the real module's functions and arguments."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
from typing import Any

import msgspec
import pytest

from edgevqa.runtime.errors import EdgeVQAError, MissingExtraError, UnavailableError
from edgevqa.runtime.sessions import BACKENDS
from edgevqa.runtime.sessions.trt import driver
from edgevqa.runtime.sessions.trt.driver import Cuda, load_bindings
from tests.simulators.cuda_simulator import CudaSimulator
from tests.simulators.tensorrt_simulator import TensorRTSimulator


@pytest.fixture
def cuda() -> Cuda:
    return Cuda(CudaSimulator(integrated=True, capability="8.7"))


def test_the_device_is_asked(cuda: Cuda) -> None:
    info = cuda.info
    assert (info.name, info.compute_capability, info.integrated, info.pools) == ("Simulated GPU", "8.7", True, True)


@pytest.mark.parametrize("error", ["cudaErrorNoDevice", "cudaErrorInsufficientDriver"])
def test_without_driver_or_gpu_it_is_unavailable(error: str) -> None:
    bindings = CudaSimulator()
    bindings.fail_next("cudaSetDevice", error)
    with pytest.raises(UnavailableError, match=rf"{error} \(the text of {error}\).*nvidia-smi.*--backend onnxruntime"):
        Cuda(bindings)


@pytest.mark.parametrize(
    ("installed", "advice"),
    [
        ({"onnxruntime", "openvino"}, "or run on the CPU: --backend onnxruntime."),
        ({"openvino"}, "or run on the CPU: --backend openvino."),
        (set[str](), "or run on the CPU: pip install 'edgevqa[cpu]', then --backend onnxruntime."),
    ],
)
def test_the_way_out_is_a_backend_that_is_installed(
    monkeypatch: pytest.MonkeyPatch, installed: set[str], advice: str
) -> None:
    rows = {
        name: msgspec.structs.replace(row, package="numpy" if name in installed else "package_that_is_absent")
        for name, row in BACKENDS.items()
    }
    monkeypatch.setattr(driver, "BACKENDS", rows)
    bindings = CudaSimulator()
    bindings.fail_next("cudaSetDevice", "cudaErrorNoDevice")
    with pytest.raises(UnavailableError) as caught:
        Cuda(bindings)
    assert str(caught.value).endswith(advice)


def test_a_gpu_that_is_not_there() -> None:
    with pytest.raises(UnavailableError, match="no GPU of that number"):
        Cuda(CudaSimulator(), 3)


def test_other_errors_have_the_drivers_name_and_advice(cuda: Cuda) -> None:
    stream = cuda.create_stream()
    bindings: Any = cuda._cuda
    bindings.fail_next("cudaMallocAsync", "cudaErrorMemoryAllocation")
    with pytest.raises(EdgeVQAError, match=r"allocating 12\.0 MB on the GPU: cudaErrorMemoryAllocation .*Ask fewer"):
        cuda.malloc(12_000_000, stream)
    bindings.fail_next("cudaStreamSynchronize", "cudaErrorIllegalAddress")
    with pytest.raises(EdgeVQAError, match=r"waiting for the GPU: cudaErrorIllegalAddress .*Start it again"):
        cuda.synchronize(stream)


def test_without_pools_memory_is_allocated_at_once() -> None:
    bindings = CudaSimulator(pools=False)
    cuda = Cuda(bindings)
    stream = cuda.create_stream()
    cuda.free(cuda.malloc(10, stream), stream)
    assert (bindings.calls["cudaMalloc"], bindings.calls["cudaFree"]) == (1, 1)


def test_without_cuda_python_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in ("cuda.bindings.runtime", "cuda.cudart"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'edgevqa\[tensorrt-rtx\]'"):
        load_bindings("tensorrt-rtx")


def test_the_older_layout_is_taken_where_there_is_no_newer(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    old = CudaSimulator()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    monkeypatch.setitem(sys.modules, "cuda.cudart", old)
    assert load_bindings() is old


def functions() -> list[str]:
    return [name for name, _ in inspect.getmembers(CudaSimulator, inspect.isfunction) if name.startswith("cuda")]


@pytest.mark.parametrize("name", functions())
def test_the_simulator_has_the_arguments_of_the_real_functions(name: str) -> None:
    real = pytest.importorskip("cuda.bindings.runtime")
    signature = str(getattr(real, name).__doc__).partition("\n")[0]
    match = re.fullmatch(rf"{name}\((.*)\)", signature)
    assert match is not None, signature
    wanted = [part.partition(":")[0].split()[-1] for part in match.group(1).split(",") if part.strip()]
    ours = [part for part in inspect.signature(getattr(CudaSimulator, name)).parameters if part != "self"]
    assert ours == wanted


def test_every_constant_is_that_of_the_real_module() -> None:
    real = pytest.importorskip("cuda.bindings.runtime")
    names = ("cudaHostAllocDefault", "cudaHostAllocMapped", "cudaStreamNonBlocking", "cudaEventDisableTiming")
    assert {name: int(getattr(CudaSimulator, name)) for name in names} == {
        name: int(getattr(real, name)) for name in names
    }
    for kind in ("cudaError_t", "cudaMemcpyKind", "cudaStreamCaptureMode", "cudaDeviceAttr"):
        for member in getattr(CudaSimulator, kind):
            assert int(getattr(getattr(real, kind), member.name)) == int(member)


def test_the_real_functions_take_what_we_give_them() -> None:
    """Without a driver each says so; with wrong arguments it would raise a TypeError."""
    real = pytest.importorskip("cuda.bindings.runtime")
    if int(real.cudaGetDeviceCount()[0]) == 0:
        pytest.skip("there is a GPU, and these calls would reach it")
    cuda: Any = object.__new__(Cuda)
    cuda._cuda, cuda.index = real, 0
    cuda.info = Cuda(CudaSimulator()).info
    stream, event, graph = real.cudaStream_t(0), real.cudaEvent_t(0), real.cudaGraphExec_t(0)
    calls = (
        cuda.use,
        cuda._info,
        lambda: cuda.malloc(16, stream),
        lambda: cuda.free(0x1000, stream),
        lambda: cuda.host_alloc(16, mapped=True),
        lambda: cuda.upload(0x1000, 0x2000, 4, stream),
        lambda: cuda.download(0x1000, 0x2000, 4, stream),
        lambda: cuda.copy_rows((1, 8), (2, 8), 4, 3, stream),
        lambda: cuda.fill(0x1000, 0, 4, stream),
        cuda.create_stream,
        lambda: cuda.synchronize(stream),
        cuda.create_event,
        lambda: cuda.record(event, stream),
        lambda: cuda.wait(stream, event),
        lambda: cuda.begin_capture(stream),
        lambda: cuda.end_capture(stream),
        lambda: cuda.launch(graph, stream),
    )
    for call in calls:
        with pytest.raises(UnavailableError, match=r"cudaError(InsufficientDriver|NoDevice|StubLibrary)"):
            call()
    cuda.abandon_capture(stream)


CLASSES = {
    "ICudaEngine": {"num_io_tensors", "num_optimization_profiles"},
    "IExecutionContext": set(),
}


@pytest.mark.parametrize("kind", CLASSES)
def test_the_simulators_methods_are_those_of_tensorrt(kind: str) -> None:
    real = pytest.importorskip("tensorrt_rtx")
    ours = getattr(TensorRTSimulator, kind)
    own = {"shapes_of", "state"}
    names = {name for name, _ in inspect.getmembers(ours, inspect.isfunction) if not name.startswith("_")} - own
    assert names | CLASSES[kind] <= set(dir(getattr(real, kind)))


def test_the_names_that_the_sessions_use_are_in_tensorrt_rtx() -> None:
    real = importlib.import_module("tensorrt_rtx") if importlib.util.find_spec("tensorrt_rtx") else None
    if real is None:
        pytest.skip("tensorrt_rtx is not installed")
    for name in ("engine_host_code_allowed", "load_runtime", "deserialize_cuda_engine"):
        assert hasattr(real.Runtime, name)
    for name in ("create_runtime_cache", "set_runtime_cache", "cuda_graph_strategy"):
        assert hasattr(real.IRuntimeConfig, name)
    assert real.ExecutionContextAllocationStrategy.USER_MANAGED
    assert real.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    assert hasattr(real.ICudaEngine, "create_runtime_config")
    assert {"INPUT", "OUTPUT"} <= set(real.TensorIOMode.__members__)
    assert real.TensorLocation.HOST
