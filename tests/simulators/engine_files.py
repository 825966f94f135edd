"""Simulated engines in a bundle, with the records and profiles that `edgevqa build` would write."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import msgspec
import onnx

from edgevqa.export.engine.options import BuildOptions
from edgevqa.export.engine.profiles import axis_ranges, graph_profiles
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.bundle_writer import BundleWriter
from edgevqa.runtime.engines import FORMAT, EngineRecord, GraphEngine, Profile, encode_record
from edgevqa.runtime.manifest import EngineSet, FileSpec
from edgevqa.runtime.targets import target
from tests.simulators.tensorrt_simulator import engine_bytes

VERSIONS = {"tensorrt": (10, 3, 0, 30), "tensorrt-rtx": (1, 7, 1, 116)}


def add_engines(
    path: Path,
    name: str = "server-trt10",
    *,
    traits: dict[str, dict[str, Any]] | None = None,
    record: dict[str, Any] | None = None,
    **options: Any,
) -> Bundle:
    """Add an engine of every fp32 graph to the bundle at `path`, for the target `name`.

    `options` are those of a build, `traits` the simulator's by graph, `record` changes fields of engine.json.
    """
    bundle = Bundle.open(path)
    spec = bundle.variant("fp32")
    given: dict[str, Any] = {"batch": (1, 4), **options}
    chosen = BuildOptions(target=name, **given)
    ranges = axis_ranges(bundle.manifest, spec.graphs, chosen)
    profiles = {graph: graph_profiles(graph, spec.graphs[graph], ranges) for graph in spec.graphs}
    flavour = target(name).flavour or "tensorrt"
    version = (record or {}).get("tensorrt_version", VERSIONS[flavour])
    with BundleWriter.extend(bundle) as writer:
        files: dict[str, FileSpec] = {}
        for graph in spec.graphs:
            data = engine_bytes(
                whole_graph(bundle.graph_path("fp32", graph)),
                msgspec.to_builtins(profiles[graph]),
                flavour=flavour,
                version=version,
                carries_runtime=bool((record or {}).get("version_compatible")),
                **(traits or {}).get(graph, {}),
            )
            files[graph] = writer.add_bytes(data, f"engines/{name}/fp32/{graph}.engine")
        made = _record(bundle, name, files, profiles, {"tensorrt_version": version, **(record or {})})
        entry = EngineSet(
            target=name,
            variant="fp32",
            record=writer.add_bytes(encode_record(made), f"engines/{name}/fp32/engine.json"),
            engines=files,
        )
        sets = {**bundle.manifest.engines, f"{name}/fp32": entry}
        return writer.finish(msgspec.structs.replace(bundle.manifest, engines=sets))


def whole_graph(path: Path) -> bytes:
    """An ONNX file with its weights in it. (onnx reads no file that is linked twice, as those of a bundle may be.)"""
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        about = {entry.key: entry.value for entry in tensor.external_data}
        with (path.parent / about["location"]).open("rb") as file:
            file.seek(int(about.get("offset", 0)))
            tensor.raw_data = file.read(int(about["length"]))
        del tensor.external_data[:]
        tensor.data_location = onnx.TensorProto.DEFAULT
    return bytes(model.SerializeToString())


def _record(
    bundle: Bundle, name: str, files: dict[str, FileSpec], profiles: dict[str, list[Profile]], changes: dict[str, Any]
) -> EngineRecord:
    spec = bundle.variant("fp32")
    graphs = {
        graph: GraphEngine(
            file=f"{graph}.engine",
            sha256=file.sha256,
            size_bytes=file.size_bytes,
            onnx_sha256=spec.graphs[graph].file.sha256,
            weights_sha256=None if spec.weights is None else spec.weights.sha256,
            profiles=profiles[graph],
            inputs=spec.graphs[graph].inputs,
            outputs=spec.graphs[graph].outputs,
            high_layers=[],
            seconds=0.0,
            peak_memory_mb=0.0,
        )
        for graph, file in files.items()
    }
    fields: dict[str, Any] = {
        "format": FORMAT,
        "target": name,
        "variant": "fp32",
        "precision": "fp32",
        "numerics": "fp32",
        "flavour": target(name).flavour,
        "os": platform.system().lower(),
        "arch": platform.machine(),
        "device": "Simulated GPU",
        "compute_capabilities": ["8.6"],
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
        "graphs": graphs,
    }
    return EngineRecord(**{**fields, **changes})
