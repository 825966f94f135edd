"""ONNX Runtime's GPU providers, as far as a CPU shows them: options, what is missing, and the cache's addresses."""

from __future__ import annotations

import ctypes
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgevqa.runtime.axes import Range
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.caches import HostKeyValueCache
from edgevqa.runtime.errors import ConfigError, EdgeVQAError, InputError, UnavailableError
from edgevqa.runtime.manifest import GraphSpec, TensorSpec
from edgevqa.runtime.sessions import BACKENDS, choose_backend, open_session
from edgevqa.runtime.sessions.base import SessionOptions, Tensor
from edgevqa.runtime.sessions.ort_device_cache import DeviceKeyValueCache
from edgevqa.runtime.sessions.ort_gpu import GpuOrtSession, missing_library, open_gpu_session, preload, unavailable
from edgevqa.runtime.sessions.ort_providers import (
    CUDA,
    PROVIDERS,
    RTX,
    TENSORRT,
    Provider,
    axis_ranges,
    make_options,
    profile_options,
)
from edgevqa.runtime.sessions.ort_values import OrtTensor

onnxruntime = pytest.importorskip("onnxruntime")
PAST = [
    TensorSpec(name=f"past_{kind}.{n}", dtype="float32", shape=["batch", 2, "capacity", 3])
    for kind in ("key", "value")
    for n in range(2)
]


@pytest.fixture
def bundle(toy_bundle: Path) -> Bundle:
    return Bundle.open(toy_bundle)


@pytest.fixture
def ranges(bundle: Bundle) -> dict[str, Range]:
    return axis_ranges(bundle.manifest, bundle.variant("fp32").graphs)


def test_every_provider_is_a_backend_that_an_extra_installs() -> None:
    for name, provider in PROVIDERS.items():
        row = BACKENDS[name]
        assert row.extra == ("cpu" if provider.plugin else "gpu")  # NVIDIA's plugin goes with the package for CPUs
        assert bool(provider.plugin) is (row.package == provider.plugin)
        assert not provider.library or row.library == f"capi/{provider.library}"
    assert [name for name in PROVIDERS if BACKENDS[name].automatic] == ["ort-cuda"]


def test_profiles_come_from_the_axes(bundle: Bundle, ranges: dict[str, Range]) -> None:
    fusion = bundle.graph("fp32", "vision_fusion")
    made = profile_options("trt", fusion.inputs, ranges)
    assert list(made) == ["trt_profile_min_shapes", "trt_profile_opt_shapes", "trt_profile_max_shapes"]
    words = bundle.manifest.text.max_tokens if bundle.manifest.text else 0
    assert made["trt_profile_max_shapes"] == f"trunk_states:8x4x6,question_states:8x{words}x8,attention_mask:8x{words}"
    assert made["trt_profile_min_shapes"].endswith("attention_mask:1x1")
    fixed = TensorSpec(name="cache_length", dtype="int64", shape=[1])
    cross = TensorSpec(name="cross_key.0", dtype="float32", shape=["batch", 2, "keys", 3])
    decoder = profile_options("nv", [fixed, cross, PAST[0]], ranges)
    tokens = ranges["keys"][2] - words
    assert ranges["keys"] == (tokens + 1, tokens + 12, tokens + words)
    slots = bundle.manifest.generation.max_new_tokens if bundle.manifest.generation else 0
    assert decoder["nv_profile_opt_shapes"] == f"cross_key.0:1x2x{tokens + 12}x3,past_key.0:1x2x{slots}x3"


def test_an_axis_of_unknown_size_leaves_shapes_to_the_provider(bundle: Bundle) -> None:
    assert profile_options("trt", bundle.graph("fp32", "vision_fusion").inputs, {"batch": (1, 1, 8)}) == {}


def options(provider: Provider, bundle: Bundle, cache: Path | None = None, **given: str) -> dict[str, str]:
    spec = bundle.graph("fp32", "projector")
    return make_options(
        provider, spec, numerics="s8-fp16", ranges=axis_ranges(bundle.manifest, {}), cache=cache, given=given
    )


def test_what_the_user_gives_wins_and_an_empty_option_is_left_out(bundle: Bundle) -> None:
    assert options(CUDA, bundle)["enable_cuda_graph"] == "0"
    made = options(CUDA, bundle, enable_cuda_graph="1", use_tf32="", device_id="1")
    assert made["enable_cuda_graph"] == "1"
    assert made["device_id"] == "1"
    assert "use_tf32" not in made
    assert "trt_profile_min_shapes" not in options(TENSORRT, bundle, trt_profile_min_shapes="")


def test_tensorrt_may_use_the_graphs_types_alone(bundle: Bundle, tmp_path: Path) -> None:
    int8 = options(TENSORRT, bundle, tmp_path)
    assert int8["trt_fp16_enable"] == int8["trt_int8_enable"] == int8["trt_layer_norm_fp32_fallback"] == "True"
    assert "trt_bf16_enable" not in int8
    assert int8["trt_engine_cache_path"] == int8["trt_timing_cache_path"] == str(tmp_path)
    plain = make_options(TENSORRT, bundle.graph("fp32", "projector"), numerics="fp32", ranges={}, cache=None, given={})
    assert plain == TENSORRT.options


def test_tensorrts_switches_are_words(bundle: Bundle, tmp_path: Path) -> None:
    """ONNX Runtime's Python reads them by itself, and takes no 0 and 1 as it does for its other providers."""
    made = options(TENSORRT, bundle, tmp_path)
    switches = {name: value for name, value in made.items() if name.endswith(("_enable", "_fallback"))}
    assert len(switches) == 6
    assert set(switches.values()) == {"True", "False"}


def test_libraries_of_another_environment_are_loaded_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """PyTorch's CUDA may lie elsewhere than ONNX Runtime, which looks beside itself alone."""
    own, other, third = (tmp_path / name for name in ("own", "other", "third"))
    for place, names in ((own, ("cudnn",)), (other, ("cu13", "cudnn")), (third, ("cu13",))):
        for name in names:
            (place / "nvidia" / name / "lib").mkdir(parents=True)
    asked: list[str] = []

    def preload_dlls(directory: str) -> None:
        asked.append(directory)
        warnings.warn("nothing is there", stacklevel=1)

    monkeypatch.setattr(onnxruntime, "preload_dlls", preload_dlls)
    monkeypatch.setattr(onnxruntime, "__file__", str(own / "onnxruntime" / "__init__.py"))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "a.zip"), str(own), str(other), str(third)])
    preload.__wrapped__()
    assert asked == ["", str(other / "nvidia" / "cu13" / "lib")]


def test_a_provider_that_is_a_plugin_of_the_build_counts(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    on_cpu = Provider(backend="ort-cuda", name="CPUExecutionProvider", needs="", options={})
    monkeypatch.setattr(onnxruntime, "get_available_providers", list)
    spec, path = bundle.graph("fp32", "projector"), bundle.graph_path("fp32", "projector")
    with GpuOrtSession(path, "projector", spec, SessionOptions(), provider=on_cpu, made={}) as session:
        assert session.run(random_inputs(spec))["image_embeds"].numpy().size


def test_rtx_keeps_what_it_compiles(bundle: Bundle, tmp_path: Path) -> None:
    made = options(RTX, bundle, tmp_path)
    assert made["nv_runtime_cache_path"] == str(tmp_path)
    assert made["nv_profile_opt_shapes"].startswith("image_states:1x")


@pytest.mark.parametrize("name", PROVIDERS)
def test_a_build_without_the_provider_is_answered_with_what_to_install(name: str) -> None:
    if BACKENDS[name].installed():
        pytest.skip(f"{BACKENDS[name].package} has it")
    in_place_of, extra = ("onnxruntime-gpu", "cpu") if name == "ort-rtx" else ("onnxruntime", "gpu")
    with pytest.raises(UnavailableError, match=rf"pip uninstall {in_place_of}, then pip install 'edgevqa\[{extra}\]'"):
        choose_backend(name)
    assert BACKENDS[name].missing().exit_code == 3


@pytest.mark.parametrize("provider", [CUDA, TENSORRT], ids=lambda row: row.backend)
def test_no_session_falls_back_to_the_cpu(
    provider: Provider, bundle: Bundle, capfd: pytest.CaptureFixture[str]
) -> None:
    """The CPU build lacks the provider; the GPU build without a driver has it, and silently goes on without it."""
    if not missing_library(provider):
        pytest.skip("it can be loaded here")
    with pytest.raises(UnavailableError) as caught:
        open_gpu_session(bundle, "fp32", "projector", SessionOptions(), provider)
    built = provider.name in onnxruntime.get_available_providers()
    reason = missing_library(provider) if built else f"onnxruntime {onnxruntime.__version__} was built without it"
    told = str(caught.value)
    assert told.startswith(f"Backend '{provider.backend}' cannot be used here: ")
    assert reason in told
    assert "CUDA 13" in told
    assert "cuDNN 9" in told
    assert ("libnvinfer.so.10" in told) is (provider is TENSORRT)
    assert caught.value.exit_code == 3
    assert capfd.readouterr() == ("", "")  # ONNX Runtime would say it in its own way


def test_an_rtx_plugin_that_cannot_be_loaded_is_named(bundle: Bundle) -> None:
    absent = msgspec.structs.replace(RTX, plugin="package_that_is_absent")
    with pytest.raises(UnavailableError, match=r"'ort-rtx' cannot be used here: .*(libcuda|package_that_is_absent)"):
        open_gpu_session(bundle, "fp32", "projector", SessionOptions(), absent)


def test_a_provider_that_gives_no_reason_is_still_refused() -> None:
    assert "for a reason that it does not tell. It needs an NVIDIA driver" in str(unavailable(CUDA, ""))


def test_layers_are_timed_by_others(bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match="'ort-cuda' does not time layers"):
        open_gpu_session(bundle, "fp32", "projector", SessionOptions(profile=True), CUDA)


def test_a_device_id_is_a_number(bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match="device_id is 'first'"):
        open_gpu_session(bundle, "fp32", "projector", SessionOptions(provider_options={"device_id": "first"}), CUDA)


def test_a_session_on_the_cpu_takes_a_tensor_of_another_device(bundle: Bundle) -> None:
    """A stand-in for a tensor on a GPU: it says so, and only its host copy may be used."""
    states = np.linspace(-1, 1, 24, dtype=np.float32).reshape(1, 4, 6)
    away = OrtTensor(onnxruntime.OrtValue.ortvalue_from_numpy(states))
    away.device = "cuda"
    with open_session(bundle, "fp32", "projector", backend="onnxruntime") as session:
        spec = session.inputs[0]
        expected = session.run({spec.name: states})["image_embeds"].numpy()
        np.testing.assert_array_equal(session.run({spec.name: away})["image_embeds"].numpy(), expected)


def test_bound_runs_give_what_plain_ones_give(bundle: Bundle) -> None:
    """The way of GPU sessions, with the CPU's provider: arrays and outputs bound, and outputs taken by the next run."""
    on_cpu = Provider(backend="ort-cuda", name="CPUExecutionProvider", needs="", options={})
    for graph in ("vision_trunk", "projector"):
        spec = bundle.graph("fp32", graph)
        path = bundle.graph_path("fp32", graph)
        with (
            open_session(bundle, "fp32", graph, backend="onnxruntime") as plain,
            GpuOrtSession(path, graph, spec, SessionOptions(), provider=on_cpu, made={}) as bound,
        ):
            feed = random_inputs(spec)
            expected = plain.run(feed)
            held = bound.run({name: OrtTensor(_value(array)) for name, array in feed.items()})
            found = bound.run(feed)
            for name, value in expected.items():
                assert isinstance(found[name], OrtTensor)
                np.testing.assert_array_equal(found[name].numpy(), value.numpy())
                np.testing.assert_array_equal(held[name].numpy(), value.numpy())
            with pytest.raises(InputError, match=f"graph '{graph}'"):
                bound.run({})
        with pytest.raises(EdgeVQAError, match="was closed"):
            bound.run(feed)


def random_inputs(spec: GraphSpec) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    shapes = {each.name: [axis if isinstance(axis, int) else 2 for axis in each.shape] for each in spec.inputs}
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


class HostCopy:
    """What CUDA does for the cache, in host memory; nothing may be read before `finish`."""

    def __init__(self) -> None:
        self.pending = 0

    def rows(self, to: tuple[int, int], source: tuple[int, int], width: int, count: int) -> None:
        self.pending += 1
        for row in range(count):
            ctypes.memmove(to[0] + row * to[1], source[0] + row * source[1], width)

    def finish(self) -> None:
        self.pending = 0


def zeros(shape: tuple[int, ...], dtype: str) -> OrtTensor:
    """A buffer that ONNX Runtime owns, as it would on a GPU."""
    return OrtTensor(onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, np.dtype(dtype), "cpu"))


def test_the_cache_on_the_device_is_the_one_on_the_host() -> None:
    """Tokens, and beams that change places, until it is full and beyond."""
    random = np.random.default_rng(0)
    copy, batch, capacity = HostCopy(), 3, 4
    past = {spec.name: zeros((batch, 2, capacity, 3), "float32") for spec in PAST}
    device = DeviceKeyValueCache(past, capacity, copy, zeros)
    host = HostKeyValueCache(PAST, batch, capacity)
    for step in range(capacity + 1):
        news = {
            spec.name.replace("past", "new"): random.standard_normal((batch, 2, 1, 3)).astype(np.float32)
            for spec in PAST
        }
        outputs: dict[str, Tensor] = {name: OrtTensor(_value(array)) for name, array in news.items()}
        device.append(outputs)
        host.append(outputs)
        if step in (1, 2):
            rows = np.array([2, 0, 0] if step == 1 else [0, 1, 2], dtype=np.int64)
            device.reorder(rows)
            host.reorder(rows)
        assert copy.pending == 0
        assert device.length == host.length == min(step + 1, capacity)
        for name, buffer in host.inputs().items():
            held = device.inputs()[name]
            assert isinstance(held, OrtTensor)
            assert isinstance(buffer, np.ndarray)
            np.testing.assert_array_equal(held.numpy()[:, :, : device.length], buffer[:, :, : host.length])


class Foreign:
    """A tensor of another backend, which only gives a host copy."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.shape: tuple[int, ...] = array.shape

    def numpy(self) -> np.ndarray:
        return self.array


WAYS: dict[str, Callable[[np.ndarray], Tensor | np.ndarray]] = {
    "own": lambda array: OrtTensor(_value(array)),
    "host": lambda array: array,
    "not contiguous": lambda array: array.transpose(0, 2, 1, 3).copy().transpose(0, 2, 1, 3),
    "foreign": Foreign,
}


@pytest.mark.parametrize("way", WAYS)
def test_chunks_of_several_slots_are_written_as_on_the_host(way: str) -> None:
    random = np.random.default_rng(0)
    copy, batch, capacity = HostCopy(), 3, 6
    device = DeviceKeyValueCache(
        {spec.name: zeros((batch, 2, capacity, 3), "float32") for spec in PAST}, capacity, copy, zeros
    )
    host = HostKeyValueCache(PAST, batch, capacity)
    for slots in (2, 1, 2, 3, 1):
        news = {
            spec.name.replace("past", "new"): random.standard_normal((batch, 2, slots, 3)).astype(np.float32)
            for spec in PAST
        }
        device.append({name: WAYS[way](array) for name, array in news.items()})
        host.append(dict(news))
        assert copy.pending == 0
        assert device.length == host.length
        for name, buffer in host.inputs().items():
            held = device.inputs()[name]
            assert isinstance(held, OrtTensor)
            np.testing.assert_array_equal(held.numpy()[:, :, : device.length], np.asarray(buffer)[:, :, : host.length])
    assert device.length == capacity


@pytest.mark.parametrize("shape", [(3, 2, 2, 4), (3, 2, 3), (2, 2, 2, 3), (3, 2, 1, 3)])
def test_keys_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    device = DeviceKeyValueCache({spec.name: zeros((3, 2, 4, 3), "float32") for spec in PAST}, 4, HostCopy(), zeros)
    news = {spec.name.replace("past", "new"): np.zeros((3, 2, 2, 3), np.float32) for spec in PAST}
    with pytest.raises(EdgeVQAError, match=r"expected float32 \(3, 2, slots, 3\) with as many slots"):
        device.append({**news, "new_value.1": np.zeros(shape, np.float32)})
    assert device.length == 0


def _value(array: np.ndarray) -> object:
    """The array in memory of ONNX Runtime's own."""
    value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(array.shape, array.dtype, "cpu")
    value.update_inplace(array)
    return value
