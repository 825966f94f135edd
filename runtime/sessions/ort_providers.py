"""ONNX Runtime's GPU execution providers: what each is called and needs, and the options that it is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from edgevqa.runtime.axes import Range, encoder_keys, question_words, reads_prompts, words_by_reader
from edgevqa.runtime.manifest import GraphSpec, Manifest, Numerics, TensorSpec
from edgevqa.runtime.sessions import CUDA_LIBRARIES, TENSORRT_LIBRARIES

MOST_ROWS = 8  # what `max_batch` of the pipeline is by itself
MOST_SLOTS = 128
DRIVER = "libcuda.so.1"


class Provider(msgspec.Struct, frozen=True, kw_only=True):
    """One execution provider.

    `plugin` is the Python package of one that is not part of ONNX Runtime, `library` the file of one that is. `options`
    do not depend on the graph, and those that start with `prefix` tell it the shapes to be tuned for. `behind` are the
    providers that take what it leaves. `needs` is what it runs with, for people.
    """

    backend: str
    name: str
    needs: str
    options: dict[str, str]
    prefix: Literal["", "trt", "nv"] = ""
    library: str = ""
    plugin: str = ""
    behind: tuple[str, ...] = ()


CUDA = Provider(
    backend="ort-cuda",
    name="CUDAExecutionProvider",
    needs=f"an NVIDIA driver, {CUDA_LIBRARIES}",
    options={
        "device_id": "0",
        "use_tf32": "0",  # float32 stays float32, as on every other backend
        "cudnn_conv_algo_search": "HEURISTIC",  # the default tries every algorithm, again for each new shape
        "arena_extend_strategy": "kSameAsRequested",
        "enable_cuda_graph": "0",  # wants one shape for ever: ours change with the question
    },
    library="libonnxruntime_providers_cuda.so",
)
TENSORRT = Provider(
    backend="ort-trt",
    name="TensorrtExecutionProvider",
    needs=f"an NVIDIA driver, {CUDA_LIBRARIES} and {TENSORRT_LIBRARIES}",
    options={"device_id": "0", "trt_cuda_graph_enable": "False"},  # ONNX Runtime takes no 0 and 1 for these
    prefix="trt",
    library="libonnxruntime_providers_tensorrt.so",
    behind=(CUDA.name,),
)
RTX = Provider(
    backend="ort-rtx",
    name="NvTensorRTRTXExecutionProvider",
    needs="an NVIDIA driver for the plugin's CUDA (13 or 12) and a GPU of compute capability 8.0 or higher",
    options={"device_id": "0", "enable_cuda_graph": "0"},
    prefix="nv",
    plugin="onnxruntime_ep_nv_tensorrt_rtx",
)
PROVIDERS = {row.backend: row for row in (CUDA, TENSORRT, RTX)}


def make_options(
    provider: Provider,
    graph: GraphSpec,
    *,
    numerics: Numerics,
    ranges: Mapping[str, Range],
    cache: Path | None,
    given: Mapping[str, str],
) -> dict[str, str]:
    """The provider's options for a graph. What is `given` wins; an option given as "" is left out.

    `ranges` are the sizes of the graph's axes, `cache` is the folder for what the provider compiles, None for none.
    """
    made = dict(provider.options)
    if provider.prefix == "trt":
        made |= _tensorrt_types(numerics)
    if cache is not None:
        made |= _cache_options(provider, cache)
    if provider.prefix:
        made |= profile_options(provider.prefix, graph.inputs, ranges)
    return {name: value for name, value in {**made, **given}.items() if value}


def profile_options(prefix: str, inputs: Sequence[TensorSpec], ranges: Mapping[str, Range]) -> dict[str, str]:
    """Least, usual and most of the inputs' shapes: `trt_profile_min_shapes` is `input_ids:1x1,attention_mask:1x1`.

    Inputs without named axes are left out. Empty where the size of an axis is not known: the provider then learns
    shapes while it runs.
    """
    dynamic = [tensor for tensor in inputs if any(isinstance(axis, str) for axis in tensor.shape)]
    axes = {axis for tensor in dynamic for axis in tensor.shape if isinstance(axis, str)}
    if not axes or axes - set(ranges):
        return {}
    found: dict[str, str] = {}
    for place, bound in enumerate(("min", "opt", "max")):
        shapes = (
            "x".join(str(axis if isinstance(axis, int) else ranges[axis][place]) for axis in tensor.shape)
            for tensor in dynamic
        )
        pairs = (f"{tensor.name}:{shape}" for tensor, shape in zip(dynamic, shapes, strict=True))
        found[f"{prefix}_profile_{bound}_shapes"] = ",".join(pairs)
    return found


def axis_ranges(manifest: Manifest, graphs: Mapping[str, GraphSpec]) -> dict[str, Range]:
    """Least, usual and most of every axis that the pipelines know. Of axes of pictures in prompts the provider learns."""
    words = question_words(manifest)
    slots = manifest.generation.max_new_tokens if manifest.generation else 1
    prompt = words[2] if reads_prompts(graphs) else 0
    rows = (1, 1, MOST_ROWS)
    capacity = (1, slots + prompt, max(slots + prompt, MOST_SLOTS))
    ranges = {"batch": rows, "image": rows, "words": words, "capacity": capacity}
    if prompt:  # read at once, with the start token
        ranges["length"] = (1, 1, 1 + prompt)
    keys = encoder_keys(manifest, graphs, words)
    return {**ranges, **({} if keys is None else {"keys": keys}), **words_by_reader(manifest)}


def _tensorrt_types(numerics: Numerics) -> dict[str, str]:
    """The types that this provider's builder may use: those of the graph, for its networks are not strongly typed."""
    wanted = {
        "trt_fp16_enable": "fp16" in numerics,
        "trt_bf16_enable": numerics == "bf16",
        "trt_int8_enable": "8-" in numerics and not numerics.startswith("fp8"),
        "trt_layer_norm_fp32_fallback": "fp16" in numerics,
    }
    return {name: "True" for name, asked in wanted.items() if asked}


def _cache_options(provider: Provider, folder: Path) -> dict[str, str]:
    if provider.prefix == "nv":
        return {"nv_runtime_cache_path": str(folder)}
    if provider.prefix == "trt":
        return {
            "trt_engine_cache_enable": "True",
            "trt_engine_cache_path": str(folder),
            "trt_timing_cache_enable": "True",
            "trt_timing_cache_path": str(folder),
        }
    return {}
